# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3

# %% [markdown]
# # Reading results
#
# A run writes plain files as training goes on. We read them with pandas, and with
# `vagram_jax.analysis`, which adds intervals, comparisons and figures. Neither needs
# JAX or the machine that trained.

# %%
import sys

if "google.colab" in sys.modules:  # elsewhere the package is installed already
    import subprocess

    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "vagram_jax"])

# %%
import json
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from vagram_jax.analysis import figures, plots, summary
from vagram_jax.analysis.study import Study
from vagram_jax.cli import configs
from vagram_jax.run import grid, session

# %% [markdown]
# ## Results to read
#
# If you have a folder of results, set `folder` to it and skip this cell. It does what
# `vagram compare --config=pendulum --losses=vagram,mle` does, with so few steps that no
# agent learns the task, in a temporary folder.

# %%
temporary = tempfile.TemporaryDirectory()
SHORT = {
    "num_seeds": "3",
    "total_steps": "420",
    "warmup_steps": "300",
    "steps_per_epoch": "30",
    "updates_per_step": "2",
    "eval_every": "1",
    "eval_episodes": "3",
    "distractors": "3",
}


def spec_of(loss):
    settings = configs.load("pendulum", overrides={"loss": loss, **SHORT})
    return grid.make_spec(settings, {"loss": loss})


session.train_runs(
    [spec_of("vagram"), spec_of("mle")],
    temporary.name,
    "short",
    options=session.SessionOptions(),
)
folder = Path(temporary.name) / "short"  # such as Path("results/pendulum-15")

# %% [markdown]
# ## The files
#
# A study is a folder of runs. A run has one config and several seeds.

# %%
for path in sorted(folder.glob("*/*.*")):
    print(path.relative_to(folder), path.stat().st_size, "bytes")

# %% [markdown]
# `config.json` has all settings, and the versions, the device and the command.

# %%
record = json.loads((folder / "vagram" / "config.json").read_text())
print(*record)
record["config"]["sac"]

# %% [markdown]
# ## With pandas
#
# `metrics.csv` has a row for each seed and evaluation, `model.csv` a row for each seed
# and fit of the model. Both name the loss.


# %%
def read(name):
    tables = [pd.read_csv(path) for path in sorted(folder.glob(f"*/{name}"))]
    return pd.concat(tables, ignore_index=True)


metrics, model = read("metrics.csv"), read("model.csv")
metrics[["loss", "seed", "env_steps", "return", "length", "diverged_at", "dropped"]]

# %% [markdown]
# A seed that diverges is stopped: `diverged_at` is the step, and its returns are NaN
# from there on, which pandas leaves out of a mean. So count diverged seeds first.

# %%
metrics.groupby(["loss", "seed"])["diverged_at"].max().groupby("loss").count()

# %%
metrics.pivot_table(index="env_steps", columns="loss", values="return", dropna=False)

# %% [markdown]
# Compare models by the columns that begin with `new_`: errors on transitions that no
# fit has seen, in standard deviations. They mean the same for every loss;
# `holdout_loss_*` has the units of its loss.

# %%
model.groupby("loss")[["epochs", "new_reward", "new_value"]].median()

# %% [markdown]
# ## With `vagram_jax.analysis`
#
# `Study.load` reads the folder. The final return of a seed is the mean of its last
# evaluations. The interquartile mean (IQM) over the seeds has a 95% interval from a
# bootstrap, if there are at least three seeds. A diverged seed counts with the lowest
# return of the study.

# %%
study = Study.load(folder)
print(summary.table(study.summaries))

# %% [markdown]
# The same as data frames: a row for each method, and a row for each seed. `p_vagram` is
# the probability that a seed of VaGraM is better than a seed of the row.

# %%
pd.DataFrame(study.table())

# %%
pd.DataFrame(study.finals())

# %% [markdown]
# The verdict in words. Two methods differ significantly if their intervals don't
# overlap.

# %%
print(*study.verdict(), sep="\n")

# %% [markdown]
# ## Figures
#
# The figures of the report are functions that return matplotlib figures.

# %%
plots.learning_curves(study.evaluated)

# %% [markdown]
# Anything else is a few lines. A line is a seed: what a loss attends to, and how wrong
# the value of the predicted next state is on new transitions.

# %%
model["attention"] = model[[f"attention_dim_{d}" for d in range(3)]].sum(axis=1)
fig, axes = plt.subplots(1, 2, figsize=(9, 3))
for loss, rows in model.groupby("loss"):
    color = figures.color(str(loss))
    for seed, (_, one) in enumerate(rows.groupby("seed")):
        for axis, column in zip(axes, ("attention", "new_value"), strict=True):
            label = None if seed else loss
            axis.plot(one["env_steps"], one[column], ".-", color=color, label=label)
axes[0].set(ylabel="share of the pendulum in the loss", ylim=(0.0, 1.0))
axes[1].set(ylabel="error of the value, in deviations", ylim=(0.0, None))
for axis in axes:
    axis.set_xlabel("environment steps")
axes[0].legend()
fig.tight_layout()

# %% [markdown]
# `vagram report FOLDER` writes tables and figures as one page.

# %%
temporary.cleanup()
