"""The table of docs/clients.md: made from results, written between its markers, read back to be
checked."""

import hashlib
import sys
from pathlib import Path

from .catalogue import PAGE, Client

BEGIN, END = "<!-- made by scripts/clients: begin -->", "<!-- made by scripts/clients: end -->"

# Column and its heading.
BREAKS = {
    "end": "a clean end",
    "reset": "a reset",
    "death": "death of the instance",
    "503": "503 by a proxy",
    "outage": "Redis away",
    "restart": "drain (1012)",
    "behind": "fell behind (4001)",
    "expiry": "token expired",
    "asks": "resumes with",
    "page": "lines below",
}
CONTENTS = {
    "prompt": "at once",
    "lines": "several lines",
    "empty": "empty",
    "spaces": "leading spaces",
    "u2028": "U+2028, U+0085",
    "cr": "CR, CR LF",
    "umlaut": "non-ASCII",
    "binary": "binary",
    "heartbeat": "heartbeat",
}


def _page_cell(cells: dict) -> str:
    """What the page's lines did in all scenarios together."""
    words = {column.split(" ", 1)[1]: word for column, word in cells.items() if column.startswith("page ")}
    if not words:
        return ""
    wrong = sorted({f"{name}: {word}" for name, word in words.items() if word != "yes"})
    return "; ".join(wrong) or "yes"


def _rows(clients: list[Client], results: dict, columns: dict) -> list[str]:
    lines = ["| client | " + " | ".join(columns.values()) + " |", "| --- |" + " --- |" * len(columns)]
    for client in clients:
        cells = dict(results.get(client.id, {}))
        cells["page"] = _page_cell(cells)
        words = [cells.get(column) or ("–" if column in ("asks", "page") else "") for column in columns]
        lines.append(f"| {client.label} | " + " | ".join(words) + " |")
    return lines


def render(clients: list[Client], results: dict) -> str:
    """Both tables, as Markdown."""
    columns = {c: h for c, h in CONTENTS.items() if any(c in results.get(client.id, {}) for client in clients)}
    breaks = {c: h for c, h in BREAKS.items() if c == "page" or any(c in results.get(client.id, {}) for client in clients)}
    return "\n".join([*_rows(clients, results, breaks), "", *_rows(clients, results, columns)])


def write(clients: list[Client], results: dict, version: str) -> None:
    """Writes the tables into the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{BEGIN}\n\n{render(clients, results)}\n\nMade with {version}.\n\n{END}"
    PAGE.write_text(before + made + after)


def _read_page() -> dict[str, dict[str, str]]:
    """The cells of the page's tables: heading by label of the client."""
    found: dict = {}
    headings: list[str] = []
    for line in PAGE.read_text().partition(BEGIN)[2].partition(END)[0].splitlines():
        if not line.startswith("|"):
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "client":
            headings = cells[1:]
        elif not cells[0].startswith("---"):
            found.setdefault(cells[0], {}).update(zip(headings, cells[1:]))
    return found


def _exceptions(cell: str) -> dict[str, str]:
    """The scenarios in which the page's lines do not do what they should, of a cell such as `503:
    late; reset: late`."""
    return dict(part.split(": ", 1) for part in cell.split("; ") if ": " in part)


def check(clients: list[Client], results: dict) -> int:
    """Compares what was measured with the page; prints each difference, and a closing line."""
    page = _read_page()
    passed = failed = 0
    for client in clients:
        cells = results[client.id]
        for column, heading in (BREAKS | CONTENTS).items():
            if column not in cells or column == "asks":
                continue
            written = page.get(client.label, {}).get(heading)
            if written == cells[column]:
                passed += 1
            else:
                failed += 1
                print(f"{client.id}, {heading}: docs/clients.md says '{written}', seen '{cells[column]}'", file=sys.stderr)
        lines = _exceptions(page.get(client.label, {}).get(BREAKS["page"], ""))
        for name, word in cells.items():
            if not name.startswith("page "):
                continue
            written = lines.get(name[5:], "yes")
            if written == word:
                passed += 1
            else:
                failed += 1
                print(f"{client.id}, lines below, {name[5:]}: docs/clients.md says '{written}', seen '{word}'", file=sys.stderr)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


def fingerprint(binary: Path) -> str:
    """Results of another binary do not belong into the same table."""
    return hashlib.sha256(binary.read_bytes()).hexdigest()[:16]
