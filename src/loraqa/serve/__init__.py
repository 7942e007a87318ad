"""Serving: an HTTP API and a web page. It needs the extra `serve` (FastAPI and uvicorn).

- `app`: the API, one model that answers one request after another
- `server`: listening, and ending on Ctrl-C
- `page.html`: the page, in one file
"""
