"""`python3 hack/onebox COMMAND`: a Kubernetes on one bare Linux machine, from the standard library alone."""

from __future__ import annotations

import sys

from onebox.commands import main

sys.exit(main(sys.argv[1:]))
