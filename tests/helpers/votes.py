"""Files of votes, written row by row, and what an import makes of them."""

import csv
import json

from alignment.labeling.formats.reading import ImportOptions
from alignment.labeling.import_export import import_file
from alignment.ratings import RatingsStore

QUESTION, RIGHT, WRONG = "Wo ist der Brennofen? 🏺", "Im Schuppen.", "Wer weiß."


def write_rows(path, rows):
    """As JSON lines, a JSON list or CSV, by the suffix."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


class Imported:
    """The result of an import, and the votes in the store: (labeler, choice, strength, ranks, score, given)."""

    def __init__(self, folder, rows, format="auto", name="votes.jsonl", **options):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = write_rows(folder / name, rows)
        with RatingsStore(folder / "ratings.db", create=True) as store:
            self.result = import_file(store, format, self.path, ImportOptions(**options))
            self.again = import_file(store, format, self.path, ImportOptions(**options))
            self.items, self.ratings = store.items(), store.ratings()
            self.simulated = store.people.simulated()
        assert (self.again["new_items"], self.again["new_ratings"]) == (0, 0)

    @property
    def votes(self):
        return [(rating.labeler, rating.choice) for rating in self.ratings]

    def texts(self, item=0):
        return [completion.text for completion in self.items[item].completions]

    def winners(self):
        """(labeler, the text that won, or `tie`) of pairs."""
        texts = {item.id: [completion.text for completion in item.completions] for item in self.items}
        sides = {"first": 0, "second": 1}
        return [(r.labeler, texts[r.item][sides[r.choice]] if r.choice in sides else r.choice) for r in self.ratings]
