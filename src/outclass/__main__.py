"""``python -m outclass``."""

from outclass.cli import main

main()
