"""Documents as input: folders and globs (`paths`), the text of HTML (`html_text`), pieces of long texts (`chunks`)."""
