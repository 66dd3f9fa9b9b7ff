# %% parameters
config = ""
output_dir = "runs/default"
teachers = ""
drones = ""
updates = 0
device = ""
seed = -1
# %%
from pathlib import Path
# %%
out = Path(output_dir)
out.mkdir(parents=True, exist_ok=True)
learned = Path(teachers or out / "teachers.safetensors").read_text()
(out / "student.safetensors").write_text(learned + str(updates))
