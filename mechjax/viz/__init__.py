"""Pictures of what was found, as small pieces that an experiment puts together.

`charts` draws on matplotlib axes, for PNG files and papers; `page` writes self-contained HTML, for
looking closely and for sending to a colleague. Both take plain numbers and strings, know nothing of
models, and show tokens through `tokens`, so that a blank or a line break can be seen.
"""
