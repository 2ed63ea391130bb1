"""Bad input, written by us in the spirit of JSONTestSuite, csv-spectrum and the big list of naughty strings."""

# JSONTestSuite: texts that a parser must take (y), must refuse (n), or may do either with (i).
JSON_GOOD = [
    "{}", "[]", "[[]]", '[""]', "[null]", "[1 ]", "[true]", " [] ", "[\n]", "[1,null,null,2]", '["\\u0061\\u30af"]',
    '["\\ud83d\\ude39\\ud83d\\udc8d"]', '["\\"\\\\\\/\\b\\f\\n\\r\\t"]', '["\\u0000"]', "[-0]", "[-1]", "[1E22]", "[1e+2]",
    "[0e1]", "[0.1e-7]", '["\u2028 \u2029"]', '["\x7f"]', '["€𝄞"]', '["\\\\n"]', '{"a":[]}', '{"":0}', '{"a\\u0000b":1}',
    '"lonely"', "42", "-0.1", "null", "false", '{"min": -1.0e+28, "max": 1.0e+28}', "[20e1]", '[" "]', '["new\u00a0line"]',
]  # fmt: skip
JSON_BAD = [
    "", " ", "[", "]", "{", "}", "[1,]", "[,1]", "[1,,2]", '["x"', '["x", truth]', "[1 true]", "[a]", "[-]", "[+1]", "[01]",
    "[.1]", "[1.]", "[1e]", "[1e+]", "[0x1]", "[- 1]", "[NaN]", "[Infinity]", "[-Infinity]", "[--2.]", "['single']", '["\\x00"]',
    '["\\u00A"]', '["\\u"]', '["tab\there"]', '["line\nbreak"]', '["nul\x00"]', '["unclosed', '["\\"]', "[1]x", "[1][2]", "{}}",
    '{"a":1,}', '{"a" 1}', '{"a",1}', "{a:1}", "{1:1}", '{"a":/*x*/1}', "// x\n[]", "[1]#", "[\u00a01]", "[\x0c]", "\ufeff\ufeff[]",
    "[True]", "nul", "tru", "*", "<null>", '{"a":"b"', "[" * 100_000, '{"a":' * 100_000, "[" + "9" * 5_000 + "]", "\u2060",
    '{"a":1 "b":2}', '["a" "b"]', "[1:2]", '{"a":"b"}/**/', '["\\ud800\\"]', "[\\n]", '{"x", null}', "[3[4]]", "[1eE2]",
]  # fmt: skip
JSON_EITHER = [
    '["\\ud800"]', '["\\uDFAA"]', '["\\uD888\\u1234"]', "[1e999]", "[-1e999]", "[123.456e-789]", "[" * 500 + "]" * 500,
    "[" + "1" * 4_000 + "]", '["\\uDBFF\\uDFFE"]', '{"a":1,"a":2}', '{"a":1,"a":1}', "[0.4e00669999999999999999999]", "\ufeff{}",
]  # fmt: skip

# csv-spectrum: a file, and its rows.
CSV_SPECTRUM: dict[str, tuple[str, list[dict[str, str]]]] = {
    "comma_in_quotes": (
        'prompt,address\nJohn,"120 any st., Anytown, WW"\n',
        [{"prompt": "John", "address": "120 any st., Anytown, WW"}],
    ),
    "empty": ('prompt,b,c\n1,"",""\n2,3,4\n', [{"prompt": "1"}, {"prompt": "2", "b": "3", "c": "4"}]),
    "empty_crlf": ('prompt,b\r\n1,""\r\n2,3\r\n', [{"prompt": "1"}, {"prompt": "2", "b": "3"}]),
    "escaped_quotes": (
        'a,prompt\n1,"ha ""ha"" ha"\n3,4\n',
        [{"a": "1", "prompt": 'ha "ha" ha'}, {"a": "3", "prompt": "4"}],
    ),
    "json": (
        'key,prompt\n1,"{""type"": ""Point"", ""coordinates"": [102.0, 0.5]}"\n',
        [{"key": "1", "prompt": '{"type": "Point", "coordinates": [102.0, 0.5]}'}],
    ),
    "location_coordinates": (
        "Longitude,prompt\n-71.0,Boston\n\n-72.0,Hartford\n",
        [{"Longitude": "-71.0", "prompt": "Boston"}, {"Longitude": "-72.0", "prompt": "Hartford"}],
    ),
    "newlines": (
        'prompt,b\n"Once upon \na time",5\n7,8\n',
        [{"prompt": "Once upon \na time", "b": "5"}, {"prompt": "7", "b": "8"}],
    ),
    "newlines_crlf": ('prompt,b\r\n"Once upon \r\na time",5\r\n', [{"prompt": "Once upon \r\na time", "b": "5"}]),
    "quotes_and_newlines": ('a,prompt\n1,"ha \n""ha"" \nha"\n', [{"a": "1", "prompt": 'ha \n"ha" \nha'}]),
    "simple": ("prompt,b,c\n1,2,3\n", [{"prompt": "1", "b": "2", "c": "3"}]),
    "simple_crlf": ("prompt,b,c\r\n1,2,3\r\n", [{"prompt": "1", "b": "2", "c": "3"}]),
    "utf8": ("prompt,b\n1,2\n4,ʤ\n", [{"prompt": "1", "b": "2"}, {"prompt": "4", "b": "ʤ"}]),
    "no_last_line_end": ("prompt,b\n1,2", [{"prompt": "1", "b": "2"}]),
    "spaces": ("prompt,b\n 1 , 2 \n", [{"prompt": " 1 ", "b": " 2 "}]),
    "quoted_header": ('"prompt","b ""c"""\n1,2\n', [{"prompt": "1", 'b "c"': "2"}]),
    "nul": ("prompt,b\n1\x00,2\n", [{"prompt": "1\x00", "b": "2"}]),
}

# Texts that break programs; all but those of spaces alone are prompts.
NAUGHTY = [
    "undefined", "null", "NULL", "(null)", "nil", "None", "NaN", "true", "False", "hasOwnProperty", "then", "constructor",
    "\\", "\\\\", "0", "1", "-1", "1.00", "$1.00", "1/2", "1E2", "1E+02", "0x0", "1,000.00", "1 000,00", "Infinity", "0..0", ".",
    "01000", "08", "2.2250738585072011e-308", ",./;'[]\\-=", '<>?:"{}|_+', "!@#$%^&*()`~", "\x01\x02\x03\x04\x05\x06\x07\x08",
    "\x7f", "\x80\x81\x82", "\u00ad\u0600\u061c\u06dd\u070f", "\ufeff", "\ufffe", "Ω≈ç√∫˜µ≤≥÷", "åß∂ƒ©˙∆˚¬…æ", "œ∑´®†¥¨ˆøπ“‘",
    "¡™£¢∞§¶•ªº–≠", "ЁЂЃЄЅІЇЈЉЊ", "٠١٢٣٤٥٦٧٨٩", "⁰⁴⁵₀₁₂", "ด้้้้้็็็็็้้้้้", "'", '"', "''", '""', "'\"'", "\"''''\"'\"", "“‘", "田中さんにあげて下さい",
    "Ⱥ", "Ⱦ", "ヽ༼ຈل͜ຈ༽ﾉ", "(╯°□°）╯︵ ┻━┻", "😍", "👩🏽", "👨‍🦰 👨🏿‍🦰", "🏳️‍🌈", "🇺🇸🇷🇺", "１２３", "הָיְתָה", "الكل في المجمو عة",
    "\u202a\u202atest\u202a", "\u202etest", "\u2066test\u2067", "Ṱ̺̺̕o͞ ̷i̲̬͇̪͙n̝̗͕v̟̜̘̦͟o̶̙̰̠kè͚̮̺̪̹̱̤", "˙ɐnbᴉlɐ ɐuƃɐɯ", "𝐓𝐡𝐞 𝕢𝕦𝕚𝕔𝕜", "⒯⒣⒠",
    "<script>alert(0)</script>", "&lt;script&gt;", "<img src=x onerror=alert(2) />", "javascript:alert(1);", "';alert(9)//",
    "1;DROP TABLE users", "1'; DROP TABLE users-- 1", "' OR 1=1 -- 1", "%", "_", "-", "--", "--version", "--help", "$USER",
    "/dev/null; touch /tmp/blns.fail ; echo", "`touch /tmp/blns.fail`", "$(touch /tmp/blns.fail)", "@{[system 'x']}",
    'eval("puts 1")', "$HOME", "$ENV{'HOME'}", "%d", "%s%s%s%s%s", "{0}", "%*.*s", "%n", "{prompt}", "{{", "{prompt.__class__}",
    "../../../../../../../../../../../etc/passwd%00", "../../../etc/hosts", "() { 0; }; touch /tmp/x", "<?xml version='1.0'?>",
    "C:/", "file:///", "CON", "PRN", "AUX", "CLOCK$", "NUL", "A:", "ZZ:", "COM1", "LPT1", "COM¹", "DCC SEND STARTKEYLOGGER 0 0 0",
    "Scunthorpe General Hospital", "\x1b[31mred\x1b[0m", "But now...\x1b[20Cfor my greatest trick...\x1b[8m", "The quic\x08\x08k",
    "Powerلُلُصّبُلُلصّبُررً ॣ ॣh ॣ ॣ冗", "🏳0🌈️", "జ్ఞ‌ా", "=1+1", "+cmd", "@SUM(1)", "\u2028", "a\u2029b", "\u0000", "a\x00b", "\x85x",
    "~", ".", "..", "...", "/", "//", ".hidden", "~/x", "aux.txt", "a" * 300, "é" * 200, "x.", "x ", "#comment", "\ufffd",
]  # fmt: skip
