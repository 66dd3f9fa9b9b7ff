# %%
from raptor_nb.core.tracking import Headline
# %%
headline = Headline()
# %% parameters
config = ""
output_dir = "runs/default"
student = ""
teachers = ""
drones = ""
others = ""
# %%
import base64, json
from pathlib import Path
# %%
PIXEL = ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9"
         "awAAAABJRU5ErkJggg==")
out = Path(output_dir)
(out / "figures").mkdir(parents=True, exist_ok=True)
(out / "figures/flights.png").write_bytes(base64.b64decode(PIXEL))
(out / "flights.parquet").write_text("flights")
# %%
survival = dict(name="survival", value=.95, unit="", published=.945, required=.9, met=True)
other = dict(name="<b>", value=1, unit="m", published=None, required=None, met=None)
rows = [survival, other]
clean = "256 held-out drones, clean"
for name, value in (("survival", .99), ("return", 630.), ("steady error", .005)):
    for who in ("student", "two_phase student") if others else ():
        row = dict(name=f"{name} of {who}, {clean}", value=value, published=value / 2)
        rows.append(other | row)
(out / "verdict.json").write_text(json.dumps(rows))
# %%
headline.update("It flies.")
