"""From the url of a paid image to a verified, durable file.

fetcher     the `Images` port: guard, download, commit
guard       which urls and which socket addresses an image may come from
download    the connections without a key: bytes to memory, or to a part file
verify      the walk through an image's structure, to its end marker
names       what files and folders are called
folders     directory descriptors below the output folder
files       single files by folder descriptor: made, synced, named without overwriting
parts       the part of a large image, written while it comes
oddities    harmless strangeness, as warnings
committer   part -> final name, for a group of images at once
outside     the committer in a process of its own, for images that come fast
recovery    what a crash left behind; `verify`'s hashes
failures    the table of everything that can go wrong, and what follows from it
classify    which row of it an ending of the network is

Import the module that is needed: `recovery` costs little, `fetcher` brings aiohttp.
"""
