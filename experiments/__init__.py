"""One script a question: read it from top to bottom, run it, copy it, change it."""

import signal
import sys

if sys.argv[0] == "-m" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A script of ours starts (`python -m experiments.…`). Until `cli.main` minds signals, Ctrl-C ends it at once: the
    # exception that Python raises instead is only printed where it meets JAX's callback of the garbage collector.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
