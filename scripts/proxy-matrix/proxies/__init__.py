"""Runs the proxies of docs/load-balancers.md with the text of that page."""
