"""Documents to question-answer pairs: `alignment data qa`.

documents.py reads and cuts documents into passages. Pairs come from questions.py (a Jinja template over headings,
definitions and lists, no model) or from writing.py (a language model from chat_models.py, its replies kept in work.py).
support.py asks whether a passage supports an answer; pairs.py holds what is kept, what is dropped, and why.
"""
