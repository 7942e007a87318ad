"""An HTTP API and a web page. They need the extra `serve` (FastAPI and uvicorn)."""
