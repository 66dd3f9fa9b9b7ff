# %% parameters
config = ""
output_dir = "runs/default"
drones = ""
teacher_ids = ""
num_teachers = 0
algorithm = ""
steps = 0
device = ""
seed = -1
# %%
import json, os
from pathlib import Path
# %%
out = Path(output_dir)
out.mkdir(parents=True, exist_ok=True)
half = out / "half"
begun = half.exists()
half.write_text("half of it")
print("line", "of the log", os.getcwd())
# %%
if steps == 13: raise ValueError("thirteen steps\nbring bad luck")
if steps == 9: os._exit(9)
# %%
content = json.dumps(["resumed" if begun else "from the start", seed])
for name in ("drones.json", "teachers.safetensors", "teachers.csv"): (out / name).write_text(content)
