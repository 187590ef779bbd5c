"""The studies of the paper's claims: one file each, all with a function `run`.

`loop` trains the cells of a study and concludes from their returns; `verdicts` says by
which rule. A study of your own: a file here with a `run(plan)`, and a row below.
"""

STUDIES = {
    "loss_surface": "each loss as a function of the predicted next state",
    "changing_values": "value errors while the value function moves",
    "capacity": "return against the width of the model",
    "distraction": "return against the number of distracting dimensions",
    "distractor_scale": "return against the scale of the distracting dimensions",
    "ablation": "VaGraM against its parts",
    "baselines": "which baseline is the strongest",
    "confirmation": "where VaGraM does best, on fresh seeds",
    "hopper_capacity": "Hopper with a small and a large model",
    "hopper_distraction": "Hopper with distracting dimensions",
    "mujoco_suite": "Gymnasium's MuJoCo tasks",
}
"""What there is, each with what it shows."""
