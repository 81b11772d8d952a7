"""The table of docs/clients.md: made from results, written between its markers, read back to be
checked."""

import hashlib
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
    "page": "example",
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
    "large": "1 MiB",
    "heartbeat": "heartbeat",
}


def _page_cell(cells: dict) -> str:
    """What the client's example did in all scenarios together."""
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
    """The scenarios in which the client's example does not do what it should, of a cell such as `503:
    late; reset: late`."""
    return dict(part.split(": ", 1) for part in cell.split("; ") if ": " in part)


def check(clients: list[Client], results: dict) -> tuple[int, dict[str, list[str]]]:
    """Compares what was measured with the page; returns how many cells are as it says, and the
    differences by client."""
    page = _read_page()
    passed = 0
    differences: dict[str, list[str]] = {}
    for client in clients:
        row = page.get(client.label, {})
        exceptions = _exceptions(row.get(BREAKS["page"], ""))
        for column, seen in results[client.id].items():
            if column == "asks":
                continue
            if column.startswith("page "):
                heading, written = f"example, {column[5:]}", exceptions.get(column[5:], "yes")
            else:
                heading = (BREAKS | CONTENTS)[column]
                written = row.get(heading)
            if written == seen:
                passed += 1
            else:
                text = f"{client.id}, {heading}: docs/clients.md says '{written}', seen '{seen}'"
                differences.setdefault(client.id, []).append(text)
    return passed, differences


def fingerprint(binary: Path) -> str:
    """Results of another binary do not belong into the same table."""
    return hashlib.sha256(binary.read_bytes()).hexdigest()[:16]
