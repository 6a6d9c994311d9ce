"""What each metric means, in one line: no figure of a page is without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Convention:
    """How a metric is read: its name in tables, one line on what it counts, and whether high is good, if known."""

    title: str
    line: str
    high: bool | None = True


CONVENTIONS = {
    "auroc": Convention(
        "AUROC",
        "share of pairs of an ID and an OOD image in which the OOD image has the higher "
        "ood_score, a tie counts half. 1 = always, 0.5 = guessing.",
    ),
    "fpr95_id_positive": Convention(
        "FPR95, ID positive",
        "share of OOD images taken for ID at the threshold that keeps "
        "at least 95 % of the ID images; the convention of papers on CLIP.",
        False,
    ),
    "fpr95_ood_positive": Convention(
        "FPR95, OOD positive",
        "share of ID images called OOD at the threshold that finds "
        "at least 95 % of the OOD images; the convention of OpenOOD and pytorch-ood.",
        False,
    ),
    "aupr_in": Convention(
        "AUPR-in",
        "average precision with ID positive. Guessing gives the share of ID images, so it "
        "cannot be compared between sets of other sizes.",
    ),
    "aupr_out": Convention(
        "AUPR-out",
        "average precision with OOD positive. Guessing gives the share of OOD images, so "
        "it cannot be compared between sets of other sizes.",
    ),
    "aupr_in_trapezoid": Convention(
        "AUPR-in, trapezoid",
        "the same area with ID positive by the trapezoid rule, as OpenOOD has it; differs most where scores are tied.",
    ),
    "aupr_out_trapezoid": Convention(
        "AUPR-out, trapezoid",
        "the same area with OOD positive by the trapezoid rule, as OpenOOD has it; differs most where scores are tied.",
    ),
    "best_detection_accuracy": Convention(
        "Best detection accuracy",
        "mean of the shares of ID kept and of OOD found at "
        "the best of all thresholds, chosen on these very images, which flatters. 0.5 = guessing.",
    ),
    "best_plain_accuracy": Convention(
        "Best plain accuracy",
        "share of all images decided rightly at the best of all "
        "thresholds, chosen on these very images; never below the share of the larger side.",
    ),
    "detection_accuracy": Convention(
        "Detection accuracy",
        "mean of the shares of ID kept and of OOD found at the threshold in use. 0.5 = guessing.",
    ),
    "plain_accuracy": Convention(
        "Plain accuracy",
        "share of all images decided rightly at the threshold in use; depends on how many there are of either side.",
    ),
    "id_accuracy": Convention("ID accuracy", "share of ID images with the right class, whatever is said of OOD."),
    "oscr": Convention(
        "OSCR",
        "area under the share of ID images kept and labelled rightly, against the share of OOD "
        "images kept. At most the ID accuracy.",
    ),
    "autc": Convention(
        "AUTC",
        "mean of the areas under false alarms and under misses over all thresholds, scores moved "
        "to [0, 1]; one far-away score moves it.",
        False,
    ),
    "false_alarms_at_rate": Convention(
        "False alarms, calibrated",
        "share of ID images above a threshold that was calibrated on other ID images; it is to be the rate asked for.",
        None,
    ),
    "detection_at_rate": Convention(
        "OOD found, calibrated",
        "share of OOD images above that threshold, calibrated on ID images alone: what a user gets.",
    ),
    "detection_accuracy_at_rate": Convention(
        "Detection accuracy, calibrated", "mean of the shares of ID kept and of OOD found there. 0.5 = guessing."
    ),
    "detection_accuracy_natural": Convention(
        "Detection accuracy, natural threshold",
        "mean of the shares of ID kept and of OOD found at the detector's natural threshold, which nothing was fitted "
        "for. 0.5 = guessing.",
    ),
}
