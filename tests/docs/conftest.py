"""Import path of the helper module of these tests."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # for pages
