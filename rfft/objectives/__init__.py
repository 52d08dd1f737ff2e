"""THE METHOD: one file for each way in which a verdict becomes a gradient; regularizers."""

OBJECTIVES = {
    "x0_hat": "rfft.objectives.x0_hat:X0Hat",
    "draft": "rfft.objectives.trajectory:DraftK",
    "drtune": "rfft.objectives.trajectory:DRTune",
}
