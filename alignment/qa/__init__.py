"""Generate question-answer pairs from documents: `alignment data qa`.

documents.py splits documents into passages. Pairs come from questions.py (a Jinja template over headings, definitions
and lists, without a model) or from writing.py (a language model from chat_models.py, with replies cached in work.py).
support.py checks whether a passage supports an answer; pairs.py defines pairs and removes duplicates.
"""
