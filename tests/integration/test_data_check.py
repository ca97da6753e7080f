"""`alignment data check` on what people really have: two gigabytes, broken rows, and a page that a browser draws."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n"


def check(*arguments, **options):
    command = [sys.executable, "-m", "alignment.cli.main", "data", "check", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, **options)


def write_chats(path: Path, size: int) -> tuple[int, list[int]]:
    """Chats of about 1.6 kB up to a size in bytes, every hundredth line cut off; how many, and the lines cut off."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbgk", k=rng.randint(2, 9))) for _ in range(20_000)]
    paragraphs = [" ".join(rng.choices(words, k=60)) + "." for _ in range(20_000)]
    number, written, broken = 0, 0, []
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            number += 1
            question = " ".join(rng.choices(words, k=20)) + "?"
            answer = "\\n\\n".join(rng.choices(paragraphs, k=rng.randint(2, 5)))
            line = (
                f'{{"messages": [{{"role": "user", "content": "{question}"}}, '
                f'{{"role": "assistant", "content": "{answer}"}}]}}'
            )
            if number % 100 == 0:
                line = line[:-30]
                broken.append(number)
            written += file.write(line + "\n")
    return number, broken


@pytest.mark.slow
def test_two_gigabytes_are_checked_in_less_than_one(tmp_path):
    """With progress, and each of the broken rows, one in a hundred, by its line."""
    path = tmp_path / "d.jsonl"
    rows, broken = write_chats(path, 2 << 30)
    assert path.stat().st_size > 2 << 30
    # Another process measures, because the peak of a process's children never falls again.
    measure = (
        "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:]).returncode; "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=open('peak', 'w')); sys.exit(code)"
    )
    command = [sys.executable, "-c", measure, sys.executable, "-m", "alignment.cli.main", "data", "check", str(path)]
    with (tmp_path / "out.json").open("w") as out, (tmp_path / "err.txt").open("w") as err:
        code = subprocess.run(
            [*command, "--json", "--bad", "bad.jsonl"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=out,
            stderr=err,
        ).returncode
    assert code == 0, (tmp_path / "err.txt").read_text()[-2000:]
    peak = int((tmp_path / "peak").read_text()) * 1024
    assert peak < 1 << 30, f"{peak >> 20} MiB"
    report = json.loads((tmp_path / "out.json").read_text())
    assert (report["rows"], report["kept"], report["bad"]) == (rows, rows - len(broken), len(broken))
    expected = [f"{path}:{number}" for number in broken]
    (item,) = report["set_aside"]
    assert item["places"] == expected
    assert [json.loads(line)["where"] for line in (tmp_path / "bad.jsonl").open()] == expected
    shown = (tmp_path / "err.txt").read_text().splitlines()
    assert len(shown) > 5
    assert shown[-1].startswith(f"checking: {rows}/{rows} (100%)")


def test_each_bad_row_of_a_long_file_is_in_the_page_or_the_file_beside_it(tmp_path):
    path = tmp_path / "d.jsonl"
    rows, broken = write_chats(path, 9 << 20)  # long enough for progress
    result = check(path, "--bad", tmp_path / "bad.jsonl", "--html", tmp_path / "r.html", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{len(broken)} of {rows:,} rows" in result.stdout
    assert f"checking: {rows}/{rows} (100%)" in result.stderr
    assert [json.loads(line)["where"] for line in (tmp_path / "bad.jsonl").open()] == [f"{path}:{n}" for n in broken]
    page = (tmp_path / "r.html").read_text()
    assert all(f"<li>d.jsonl:{number}</li>" in page for number in broken)


@pytest.fixture
def chromium():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium; install chromium")
    return found


@pytest.mark.browser
def test_a_browser_draws_the_page(tmp_path, chromium):
    """Wide, narrow and dark: the verdict comes first, and nothing is wider than the window."""
    rows = [{"prompt": f"{chr(97 + n % 26) * (n + 3)}?", "completion": f"{'word ' * n}yes"} for n in range(300)]
    rows += [{"prompt": "Fine?", "completion": f"Mail desk{n}@example.org"} for n in range(3)]
    rows += [{"messages": [{"role": "human" * 40, "content": "x"}]}] * 2
    path = tmp_path / ("a-rather-long-name-" * 8 + ".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert check(path, "--html", tmp_path / "r.html", cwd=tmp_path).returncode == 0
    # The page itself may run nothing, so a copy without its policy says how wide it is.
    page = (tmp_path / "r.html").read_text()
    policy = page[page.index("<meta http-equiv") : page.index('<meta name="viewport"')]
    ask = "<script>document.title = `${document.documentElement.scrollWidth} of ${innerWidth}`</script></body>"
    (tmp_path / "asked.html").write_text(page.replace(policy, "").replace("</body>", ask))
    for width, dark in ((1200, False), (500, False), (1200, True)):
        options = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},1000",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        ]
        shot = tmp_path / f"{width}-{dark}.png"
        subprocess.run(
            [*options, f"--screenshot={shot}", f"file://{tmp_path}/r.html"],
            check=True,
            capture_output=True,
            timeout=120,
        )
        assert shot.read_bytes().startswith(PNG)
        assert shot.stat().st_size > 20_000
        dom = subprocess.run(
            [*options, "--dump-dom", f"file://{tmp_path}/asked.html"],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
        title = dom[dom.index("<title>") + 7 : dom.index("</title>")]
        wide, window = map(int, title.split(" of "))
        assert wide <= window, title
        assert dom.index("<h1") < dom.index("<table") < dom.index("Findings") < dom.index("Lengths in")
    assert (tmp_path / "1200-False.png").read_bytes() != (tmp_path / "1200-True.png").read_bytes()
