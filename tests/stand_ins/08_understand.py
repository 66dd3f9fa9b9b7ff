# %% parameters
config = ""
output_dir = "runs/default"
teachers = ""
drones = ""
# %%
import json
from pathlib import Path
# %%
rows = [dict(name="R2", value=.9, unit="", published=None, required=None, met=None)]
(Path(output_dir) / "understand.json").write_text(json.dumps(rows))
