"""A notebook's run and its chapters, and the HTML pages that are made of them."""
