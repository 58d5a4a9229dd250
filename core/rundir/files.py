"""Names of the files of a run directory. Programs outside Baton read these files: names are documented and kept."""

CONFIG = "config.yaml"
RUN_CONTEXT = "run_context.json"
RESOLVED_CONFIG = "resolved_config.yaml"
LEDGER = "chain.jsonl"
METRICS = "metrics.jsonl"
TRAIN_LOG = "train.log"
SCORES = "scores.json"
SAMPLES = "samples.jsonl"
BAD_SAMPLES = "bad_samples.jsonl"
SKIPPED_UPDATES = "skipped_updates.jsonl"
OUT_OF_MEMORY = "out_of_memory.jsonl"
PREDICTIONS = "predictions.jsonl"
VOCABULARY = "vocabulary.txt"
FEATURE_STATS = "feature_stats.json"
REPORT = "report.html"
PICTURE = "report.png"
CLUSTERS = "clusters.png"
SIMILARITIES = "similarities.png"
NEIGHBOURS = "neighbours.jsonl"
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id"
PROFILE = "profile"
LOGS = "logs"
LAUNCHER_LOCK = "launcher.lock"  # among the logs: held by the launcher at work on the run
CHECKPOINTS = "checkpoints"
LEASE = "lease.json"
LEASE_LOCK = f".{LEASE}.lock"
LINEAGE = "lineage.json"  # among the checkpoints: the step that each job went on from
SWEEP = "sweep.json"  # in the directory of a sweep, which lies beside those of its runs

DONE = "DONE"  # the last step is reached: later links have nothing to do
STOP = "STOP"  # a person cancelled the run: no link trains until `extend` removes it
FAILED = "FAILED"  # the chain was stopped because it made no progress; the file says why
