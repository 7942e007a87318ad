"""The text of a document: plain text, PDF, HTML or DOCX. The last three need the extra `documents`.

Each kind is read by a library for it: PDF by PDFium (`pypdfium2`), HTML by `resiliparse`, and DOCX
by `mammoth`, which makes HTML of it. They are imported where they are used.
"""

from loraqa.documents.document import Document
from loraqa.documents.read import parse_document, read_document

__all__ = ["Document", "parse_document", "read_document"]
