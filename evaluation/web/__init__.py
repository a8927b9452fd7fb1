"""The search page: an index behind a JSON API, and a page that needs no internet."""
