"""Makes docs/images/terminal.svg: runs the commands below in a terminal of a fixed size and animates what they print.

``python docs/terminal_picture.py [RECORDING]``: the recording is left as ``terminal.json`` in the folder for temporary files;
given it, only the drawing is repeated. Waiting is shortened; nothing that was printed is changed.
"""

from __future__ import annotations

import html
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import tempfile
import termios
import time
from fcntl import ioctl
from pathlib import Path

PICTURE = Path(__file__).parent / "images" / "terminal.svg"
COMMANDS = (
    "rltrack train --algo ppo --env CartPole-v1 --timesteps 20000 --name mine",
    "rltrack promote mine --model cartpole --floor 20",
)
COLUMNS, ROWS = 100, 26
CELL_WIDTH, CELL_HEIGHT, MARGIN = 8.4, 18, 14
LONGEST_PAUSE_SECONDS = 0.6
LONGEST_SECONDS = 20.0
FRAME_SECONDS, LAST_FRAME_SECONDS = 0.35, 6.0
COLOURS = {
    "30": "#6e7681", "31": "#ff7b72", "32": "#56d364", "33": "#e3b341",
    "34": "#79c0ff", "35": "#d2a8ff", "36": "#56d4dd", "90": "#8b949e",
}  # fmt: skip
CONTROL = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|\x1b\][^\x07]*\x07|\r|\n|[^\x1b\r\n]")


def record(folder: str) -> list[tuple[float, str]]:
    """Run the commands; return what they print as (seconds, text)."""
    events, clock = [], 0.0
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(ROWS)}
    environment["PATH"] = f"{os.path.realpath(Path(sys.executable).parent)}{os.pathsep}{environment['PATH']}"
    environment["RLTRACK_ROOT"] = os.path.join(folder, "mlruns")
    environment.pop("NO_COLOR", None)
    for command in COMMANDS:
        events.append((clock, f"\x1b[32m$\x1b[0m {command}\r\n"))
        main, end = pty.openpty()
        ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, stdin=end, stdout=end, stderr=end, env=environment
        )
        os.close(end)
        last, clock = time.monotonic(), clock + 0.8
        while select.select([main], [], [], 300)[0]:
            try:
                data = os.read(main, 1 << 16)
            except OSError:  # the terminal is closed
                break
            if not data:
                break
            now = time.monotonic()
            clock += min(now - last, LONGEST_PAUSE_SECONDS)
            last = now
            events.append((clock, data.decode("utf-8", "replace")))
        os.close(main)
        if process.wait() != 0:
            raise SystemExit(f"{command} ended with {process.returncode}: {events[-1][1]}")
        events.append((clock, "\r\n"))
    return events


class Screen:
    """As much of a terminal as rich uses: colours, bold, cursor up, erase."""

    def __init__(self) -> None:
        self.lines: list[list[tuple[str, str]]] = [[]]
        self.row = self.column = 0
        self.style = ""

    def write(self, text: str) -> None:
        """Print a text, with its control sequences."""
        for match in CONTROL.finditer(text):
            piece = match[0]
            if piece == "\r":
                self.column = 0
            elif piece == "\n":
                self._down()
            elif match[2] is not None:
                self._control(match[1], match[2])
            elif piece[0] != "\x1b":
                self._put(piece)

    def _control(self, values: str, kind: str) -> None:
        count = int(values) if values.isdigit() else 1
        if kind == "m":
            for value in (values or "0").split(";"):
                if value in ("0", ""):
                    self.style = ""
                elif value == "1":
                    self.style += "b"
                elif value in COLOURS:
                    self.style = self.style.rstrip("0123456789") + value
        elif kind == "A":
            self.row = max(0, self.row - count)
        elif kind == "K":
            line = self.lines[self.row]
            del line[0 if values == "2" else self.column :]

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _put(self, character: str) -> None:
        if self.column == COLUMNS:
            self.column = 0
            self._down()
        line = self.lines[self.row]
        line.extend([(" ", "")] * (self.column + 1 - len(line)))
        line[self.column] = (character, self.style)
        self.column += 1

    def shown(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """The last lines, as (text, style) each."""
        return tuple(_spans(line) for line in self.lines[-ROWS:])


def _spans(line: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    spans: list[tuple[str, str]] = []
    for character, style in line:
        if spans and spans[-1][1] == style:
            spans[-1] = (spans[-1][0] + character, style)
        else:
            spans.append((character, style))
    return tuple(spans)


def draw(events: list[tuple[float, str]]) -> str:
    """Return the SVG: each different line once, shown during its frames by CSS animations."""
    screen, frames, due = Screen(), [], 0.0
    faster = min(1.0, LONGEST_SECONDS / events[-1][0])
    events = [(moment * faster, text) for moment, text in events]
    for number, (moment, text) in enumerate(events):
        screen.write(text)
        following = events[number + 1][0] if number + 1 < len(events) else moment + FRAME_SECONDS
        if following >= due:
            shown = screen.shown()
            if not frames or shown != frames[-1][1]:
                frames.append((moment, shown))
            due = following + FRAME_SECONDS
    start, total = frames[0][0], frames[-1][0] - frames[0][0] + LAST_FRAME_SECONDS
    lines: dict[tuple[int, tuple[tuple[str, str], ...]], list[list[float]]] = {}
    for number, (moment, shown) in enumerate(frames):
        until = frames[number + 1][0] if number + 1 < len(frames) else start + total
        for row, spans in enumerate(shown):
            if spans:
                periods = lines.setdefault((row, spans), [])
                if periods and periods[-1][1] == moment:
                    periods[-1][1] = until
                else:
                    periods.append([moment, until])
    rules, body = [], []
    for number, ((row, spans), periods) in enumerate(lines.items()):
        steps = ["0%{visibility:hidden}"]
        for begin, end in periods:
            steps.append(f"{100 * (begin - start) / total:.2f}%{{visibility:visible}}")
            if end < start + total:
                steps.append(f"{100 * (end - start) / total:.2f}%{{visibility:hidden}}")
        rules.append(
            f"@keyframes k{number}{{{''.join(steps)}}}.l{number}{{animation:k{number} {total:.2f}s step-end infinite}}"
        )
        pieces, column = [], 0
        for text, style in spans:
            if text.strip():
                colour = COLOURS.get(style.lstrip("b"), "#e6edf3")
                bold = ' font-weight="bold"' if "b" in style else ""
                x = MARGIN + column * CELL_WIDTH
                length = f' textLength="{len(text) * CELL_WIDTH:.1f}"'
                pieces.append(f'<tspan x="{x:.1f}" fill="{colour}"{bold}{length}>{html.escape(text)}</tspan>')
            column += len(text)
        y = MARGIN + 30 + (row + 1) * CELL_HEIGHT - 5
        body.append(f'<text class="l{number}" y="{y}">{"".join(pieces)}</text>')
    width, height = round(2 * MARGIN + COLUMNS * CELL_WIDTH), 2 * MARGIN + 30 + ROWS * CELL_HEIGHT
    dots = "".join(
        f'<circle cx="{MARGIN + 8 + 20 * n}" cy="22" r="6" fill="{colour}"/>'
        for n, colour in enumerate(("#ff5f56", "#ffbd2e", "#27c93f"))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f"<title>{html.escape('; '.join(COMMANDS))}</title>"
        "<style>text{font:14px 'DejaVu Sans Mono',Menlo,Consolas,monospace;white-space:pre;visibility:hidden}"
        f"{''.join(rules)}</style>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117"/>{dots}{"".join(body)}</svg>\n'
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        recorded = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            recorded = record(scratch)
        (Path(tempfile.gettempdir()) / "terminal.json").write_text(json.dumps(recorded), encoding="utf-8")
    PICTURE.write_text(draw(recorded), encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")
