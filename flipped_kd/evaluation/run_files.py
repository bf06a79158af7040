"""Names of the files that a comparison leaves in its folder, for those who write them and those who read them."""

# Of the folder: the comparison as data and as a table.
REPORT_FILE = "report.json"
REPORT_TABLE_FILE = "report.md"
PAGE_FILE = "report.html"
# Of the folder of each seed: teacher's scores, gold labels, texts to look at. The names are older than the module
# that writes them, `experiments.artifacts`; they stay, so that reports of earlier runs can be made.
ARTIFACTS_FILE = "evidence.npz"
EXAMPLES_FILE = "evidence.json"
# Of the folder of each training run: its settings and metrics, and its scores of every pair.
RUN_FILE = "run.json"
SCORES_FILE = "scores.npz"
