"""The helper module beside the tests of the documentation."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for pages
