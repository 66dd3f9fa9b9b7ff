# %% parameters
config = ""
output_dir = "runs/default"
student = ""
targets = "onnx,h5"
route = ""
# %%
from pathlib import Path
# %%
out = Path(output_dir)
out.mkdir(parents=True, exist_ok=True)
for target in targets.split(","): (out / f"student.{target}").write_text("exported")
