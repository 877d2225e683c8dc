import sys
from pathlib import Path

# The made-up study must be importable by name in worker processes, as real studies are.
sys.path.insert(0, str(Path(__file__).parent))
