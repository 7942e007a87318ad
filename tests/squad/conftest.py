"""A small data set of two articles, as official JSON and as records."""

from typing import Any

import pytest

NILE = "The Nile flows north.\nIt is 6,650 km long, and the Nile floods."
OSLO = "Oslo is the capital of Norway. 🇳🇴 Bergen is not."


@pytest.fixture
def document() -> dict[str, Any]:
    """Official JSON, v2.0: four questions on two contexts; one has no answer."""
    return {
        "version": "v2.0",
        "data": [
            {
                "title": "Nile",
                "paragraphs": [
                    {
                        "context": NILE,
                        "qas": [
                            {
                                "id": "n1",
                                "question": " Where does the Nile flow?",
                                "answers": [
                                    {"text": "north", "answer_start": 15},
                                    {"text": "flows north", "answer_start": 9},
                                ],
                                "is_impossible": False,
                            },
                            {
                                "id": "n2",
                                "question": "Who measured it?",
                                "answers": [],
                                "is_impossible": True,
                            },
                        ],
                    }
                ],
            },
            {
                "title": "Oslo",
                "paragraphs": [
                    {
                        "context": OSLO,
                        "qas": [
                            {
                                "id": "o1",
                                "question": "What is not the capital?",
                                "answers": [{"text": "Bergen", "answer_start": 34}],
                                "is_impossible": False,
                            },
                            {
                                "id": "o2",
                                "question": "What is the capital?",
                                "answers": [{"text": "Oslo", "answer_start": 0}],
                                "is_impossible": False,
                            },
                        ],
                    }
                ],
            },
        ],
    }


@pytest.fixture
def records(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The same data set as records with the hub's columns."""
    return [
        {
            "id": qa["id"],
            "title": article["title"],
            "context": paragraph["context"],
            "question": qa["question"],
            "answers": {
                "text": [answer["text"] for answer in qa["answers"]],
                "answer_start": [answer["answer_start"] for answer in qa["answers"]],
            },
        }
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]
