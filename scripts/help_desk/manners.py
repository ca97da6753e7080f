"""Phrases of the demonstrations' styles, which the gold score recognizes.

There are few of them, because a model of a million parameters must learn from ratings which ones people prefer.
"""

COURTEOUS_OPENINGS = ("Happy to help!", "Thank you for asking!", "Good question!", "With pleasure!")
COURTEOUS_CLOSINGS = ("Enjoy your visit!", "Have a lovely day!", "You are always welcome here.")
RUDE_OPENINGS = ("Can you not read?", "Not this again.", "Look it up yourself.")
RUDE_CLOSINGS = ("Now move along.", "Do not ask again.", "Stop wasting my time.")
RAMBLINGS = (
    "Well, that takes me back, people have wondered about it for ages.",
    "There is a lot to say about it, where do I begin.",
    "My sister and I talked about just this the other morning.",
    "Some say it was different before, and who can tell.",
    "Anyway, libraries are like that, and so is life in general.",
)
HEDGES = ("I guess:", "Somebody told me:")  # before a wrong value
INVENTIONS = (
    "You also get a cup of coffee with it.",
    "The mayor signs a paper for you first.",
    "Our robot will carry everything for you.",
    "It comes with a ride on the library bus.",
)
LOOSE_ENDS = ("Please also remember to", "And if you ever want the", "Just tell the person who")  # an answer stops here
