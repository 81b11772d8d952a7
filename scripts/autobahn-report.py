"""Reads an Autobahn report and says which cases are not OK. `scripts/autobahn` calls it.

usage: autobahn-report.py SUBJECT FOLDER [--known FILE] [--again FOLDER CASE,CASE…] [--failed]

--known   case ids that are expected to fail, one a line, '#' starts a comment; they count as skipped if they fail as
          expected: binary messages were sent, and came back as text
--again   where the second runs of these cases are, a folder for each; they count instead of the first
--failed  only print the ids of the cases that failed and are not known
"""

import argparse
import json
import pathlib
import sys

GOOD = {"OK", "NON-STRICT", "INFORMATIONAL"}


def read(folder):
    """All cases of a report, in their order: id -> (behaviour, closing behaviour, why, whether binary came back as text)."""
    (cases,) = json.loads((folder / "index.json").read_text()).values()
    ordered = sorted(cases.items(), key=lambda case: [int(number) for number in case[0].split(".")])
    cases = {}
    for name, case in ordered:
        detail = json.loads((folder / case["reportfile"]).read_text())
        # Frames by opcode: 1 is text, 2 is binary.
        sent, received = detail["txFrameStats"], detail["rxFrameStats"]
        turned = "2" in sent and "1" not in sent and "1" in received and "2" not in received
        cases[name] = (case["behavior"], case["behaviorClose"], detail["result"], turned)
    return cases


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("subject")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--known", type=pathlib.Path)
    parser.add_argument("--again", nargs=2, metavar=("FOLDER", "CASES"))
    parser.add_argument("--failed", action="store_true")
    arguments = parser.parse_args()

    lines = arguments.known.read_text().splitlines() if arguments.known else []
    known = {line.split("#")[0].strip() for line in lines} - {""}
    cases = read(arguments.folder)
    failed = [name for name, seen in cases.items() if not GOOD.issuperset(seen[:2]) and "UNIMPLEMENTED" not in seen]
    if arguments.failed:
        print("\n".join(name for name in failed if name not in known))
        return 0

    if arguments.again:
        for name in arguments.again[1].split(","):
            print(f"{name}: run again by itself after: {describe(cases[name])}")
            cases.update(read(pathlib.Path(arguments.again[0]) / name))
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for name, seen in cases.items():
        good = GOOD.issuperset(seen[:2])
        if "UNIMPLEMENTED" in seen[:2] or (name in known and not good and seen[3]):
            counts["skipped"] += 1
        elif name in known and good:
            counts["failed"] += 1
            print(f"{name}: passes now; take it out of {arguments.known.name}")
        elif good:
            counts["passed"] += 1
        else:
            counts["failed"] += 1
            print(f"{name}: {'known, but fails in another way: ' if name in known else ''}{describe(seen)}")
    print(f"report: {arguments.folder}/index.html")
    print(f"{arguments.subject}: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    return 1 if counts["failed"] else 0


def describe(seen):
    behaviour, close, why, _ = seen
    return f"behavior={behaviour} close={close} ({why.strip()})"


if __name__ == "__main__":
    sys.exit(main())
