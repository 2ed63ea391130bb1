"""What people look at: run.log, progress, results, the account of the night.

Rule 1: nothing here decides anything; a report that can't be written never ends a run, results that can't be do.
Rule 2: other people's text is made safe where it is shown: text.printable, text.csv_cell, markdown.escaped.
Rule 3: terminals and logs are written on threads of their own: a full pipe or a hung disk holds up no paid call.
"""
