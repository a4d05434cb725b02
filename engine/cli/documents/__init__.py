"""Documents as input: folders and patterns (`paths`), the text of HTML (`html_text`) and chunks (`chunks`).

`written` recognises lastword's own output, which is not input.
"""
