"""Each call that removes a file or puts another in its place, with the reason why nobody else loses anything by it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("alignment", "sft", "reward", "ppo", "scripts")
FUNCTIONS = {
    *(f"os.{name}" for name in ("unlink", "remove", "rmdir", "removedirs", "rename", "renames", "replace", "truncate")),
    "shutil.rmtree",
    "shutil.move",
}
OWN_NAME = "a name with a process id or random part, which only this call knows"
RUN = "in the run folder, which belongs to one run; only its main process does this"
OWNER = "in the run folder, by the owner of its lease alone"
MADE_HERE = "a folder that this call made a moment ago, for this purpose"
REASONS = {
    "alignment/distributed/zero_checkpoint.py _convert: shutil.rmtree": "in the converted copy, not in the checkpoint",
    "alignment/distributed/zero_checkpoint.py resharded: shutil.rmtree": RUN + ": the converted copy, after use",
    "alignment/files.py keep_files: shutil.rmtree": RUN + ": a copy within a checkpoint in the making",
    "alignment/files.py name_file: os.replace": "without hard links only: over the empty file that it just made",
    "alignment/files.py new_file: os.replace": "with `replace`: a page over a page, or `data qa` over its own output",
    "alignment/files.py new_file: unlink": OWN_NAME,
    "alignment/files.py write_file: unlink": "in staging folders, which have one writer",
    "alignment/generation/vllm.py _forget_shared_memory: unlink": "the name of memory that this process has made",
    "alignment/generation/vllm_server.py FileTransfer.__init__: shutil.rmtree": RUN + ": what a killed job left behind",
    "alignment/generation/vllm_server.py FileTransfer.send: shutil.rmtree": RUN + ", once the server has read it",
    "alignment/models/export.py _new_folder: rename": "onto nothing or an empty folder: a rename refuses any other",
    "alignment/qa/work.py WorkFile.__exit__: unlink": "empty and locked; who opened it meanwhile sees that it is gone",
    "alignment/registry/files.py passing_file: unlink": OWN_NAME,
    "alignment/registry/hashes.py _write: os.replace": "a cache of hashes: either writer's entry is right",
    "alignment/registry/hashes.py _write: unlink": OWN_NAME,
    "alignment/registry/publishing.py _claim_number: os.rename": "onto nothing: a rename refuses a folder with files",
    "alignment/registry/publishing.py _staging_folder: shutil.rmtree": OWN_NAME,
    "alignment/registry/trash.py delete_tree: shutil.rmtree": "a version that `purge` has renamed to a name of its own",
    "alignment/registry/trash.py delete_tree: unlink": "a version that `purge` has renamed to a name of its own",
    "alignment/registry/trash.py drop_note: unlink": "the mark of a removed version, once that is back in its place",
    "alignment/registry/trash.py move_to_trash: os.rename": "what `gc` or `remove` was asked for; it can be restored",
    "alignment/registry/trash.py purge: os.rename": "to a name of its own, so that one of two purges gets it",
    "alignment/registry/trash.py _rename_onto_nothing: os.rename": "a rename refuses a folder with files",
    "alignment/runs/checkpoint.py Checkpoints._commit: rename": RUN + "; an uncommitted folder was moved away before",
    "alignment/runs/checkpoint.py Checkpoints._stage: shutil.rmtree": RUN + ": what killed jobs left behind",
    "alignment/runs/checkpoint.py _discard: rename": RUN + ", once newer checkpoints are verified",
    "alignment/runs/checkpoint.py _discard: shutil.rmtree": OWN_NAME,
    "alignment/runs/checkpoint.py set_aside: rename": RUN + ", to a name of its own: it is kept",
    "alignment/runs/resume.py open_run_dir: unlink": RUN + ": the exit.json of the attempt before",
    "alignment/files.py replace_text: replace": RUN + ": a whole text over the one before",
    "alignment/files.py replace_text: unlink": RUN + ": its own part, which the disk did not take",
    "alignment/runs/reserve.py become: replace": RUN + ": exit.json of this attempt over the one before",
    "alignment/runs/reserve.py drop: unlink": RUN + ": the room that this attempt has kept back",
    "alignment/runs/reserve.py give_back: os.truncate": RUN + ": the room that this attempt has kept back",
    "alignment/runs/aside.py _move: rename": OWNER + ": each entry moves within the folder",
    "alignment/runs/aside.py push: rename": OWNER + ": to the next number, which is free",
    "alignment/runs/aside.py restore: rename": OWNER + ": the earlier run comes back, what failed is kept",
    "alignment/runs/aside.py restore: rmdir": OWNER + ": an empty folder of its own making",
    "alignment/runs/aside.py recover: rmdir": OWNER + ": an empty folder of its own making",
    "alignment/runs/aside.py restore_config: replace": OWNER + ": the config of the checkpoints comes back",
    "alignment/runs/aside.py clear: rename": OWNER + ", once the run that replaces it stands",
    "alignment/runs/aside.py clear: shutil.rmtree": OWN_NAME,
    "alignment/runs/lease.py _take: unlink": "its draft, its record that came too late, records below its own",
    "alignment/runs/lease.py drop_unused: unlink": "released records of a folder that holds nothing else",
    "alignment/runs/lease.py drop_unused: rmdir": "folders that are empty",
    "alignment/runs/lease.py Lease.release: replace": "its own record, over itself, marked as released",
    "alignment/runs/signals.py clear: unlink": RUN + ": a request that was handled",
    "alignment/tracking/mirror.py _write: os.replace": "a note of what was mirrored: either writer's note is right",
    "alignment/tracking/replay.py replay: shutil.rmtree": "RUN/replay, which holds what a replay makes, and no more",
    "alignment/training/best_model.py BestModel._save: rename": RUN,
    "alignment/training/best_model.py BestModel._save: shutil.rmtree": RUN
    + "; the checkpoints keep links to its files",
    "alignment/training/best_model.py BestModel._save: unlink": MADE_HERE,
    "alignment/training/best_model.py finished_model: shutil.rmtree": RUN + ", once the model is published",
    "alignment/training/start_model.py unpublished_base: shutil.rmtree": OWN_NAME,
    "ppo/best_policy.py BestPolicy._save: replace": RUN,
    "ppo/value_pretraining.py BestCritic.__enter__: shutil.rmtree": RUN + ": what a killed job left behind",
    "ppo/value_pretraining.py BestCritic.__exit__: shutil.rmtree": RUN + ", after use",
    "ppo/value_pretraining.py BestCritic.keep: shutil.rmtree": RUN + ", once a better critic is saved",
    "reward/finish.py _merge_in_place: unlink": MADE_HERE,
    "reward/finish.py _tidy: replace": MADE_HERE,
    "reward/finish.py _tidy: unlink": MADE_HERE,
    "reward/finish.py finish: unlink": MADE_HERE,
    "reward/members.py Members.__init__: shutil.rmtree": RUN + ": members that are trained again after a resume",
    "reward/members.py Members._train: shutil.move": RUN + ", from a temporary folder",
    "reward/members.py Members.copied: shutil.move": RUN + "; after an error a resume trains this member again",
    "reward/members.py Members.copied: shutil.rmtree": RUN + ", once the ensemble is published",
    "reward/members.py Members.copied: unlink": MADE_HERE,
    "reward/studies/overfit.py overfit: shutil.rmtree": OWN_NAME,
    "scripts/demo.py run: shutil.rmtree": "runs/demo, the demo's own folder: each demo starts over",
    "alignment/training/publishing.py only_model: unlink": MADE_HERE,
}


def removals(source: str) -> set[str]:
    """`FUNCTION: VERB` of each place in a module that removes, renames or replaces files."""
    found = set()

    def visit(node: ast.AST, inside: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{inside}.{node.name}".lstrip(".")
        if isinstance(node, ast.Attribute) and (verb := verb_of(node)):
            found.add(f"{inside}: {verb}")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and (verb := method_of(node)):
            found.add(f"{inside}: {verb}")
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            assert not names & FUNCTIONS, f"write {names & FUNCTIONS} in full, so that this test sees it"
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), "")
    return found


def verb_of(node: ast.Attribute) -> str | None:
    """The function of os or shutil, called or passed on."""
    return name if (name := ast.unparse(node)) in FUNCTIONS else None


def method_of(call: ast.Call) -> str | None:
    """A path's method. A text's `replace` has two arguments, a date's none without a name."""
    assert isinstance(call.func, ast.Attribute)
    if ast.unparse(call.func) in FUNCTIONS:
        return None
    takes_one = len(call.args) == 1 and not call.keywords
    name = call.func.attr
    return name if name in ("unlink", "rmdir") or (name in ("rename", "replace") and takes_one) else None


def test_each_removal_has_its_reason():
    found = {
        f"{path.relative_to(ROOT).as_posix()} {place}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for place in removals(path.read_text(encoding="utf-8"))
    }
    assert found - REASONS.keys() == set(), "say here why nobody else can lose a file by it"
    assert REASONS.keys() - found == set(), "gone from the code"
    assert all(len(reason) > 20 for reason in REASONS.values())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(p):\n p.unlink(missing_ok=True)", {"f: unlink"}),
        ("class A:\n def f(self):\n  (os.replace if a else b)(x, y)", {"A.f: os.replace"}),
        (
            "def f(p, q):\n p.replace(q)\n p.rename(q)\n shutil.rmtree(p)",
            {"f: replace", "f: rename", "f: shutil.rmtree"},
        ),
        ("'a'.replace('a', 'b')\nwhen.replace(tzinfo=UTC)\nreplace(options, a=1)\nlines.remove(a)", set()),
    ],
)
def test_removals_are_found(source, expected):
    assert removals(source) == expected
