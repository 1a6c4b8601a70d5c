"""What of the documentation is made from something else: tables and pictures from recorded results, pages from the code."""
