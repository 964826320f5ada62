"""Images of what a network decides, and the HTML report."""
