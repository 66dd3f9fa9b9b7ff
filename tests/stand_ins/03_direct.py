# %% parameters
config = ""
output_dir = "runs/default"
drones = ""
start = ""
updates = 0
hidden_dim = 0
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
if updates == 13: raise ValueError("thirteen updates\nbring bad luck")
# %%
state = ["resumed" if begun else "from the start", seed, updates]
(out / "student.safetensors").write_text(json.dumps(state))
