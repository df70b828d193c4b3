"""Computes every metric in the most literal way, as the slow twin of `trainer.evaluation`."""

import numpy as np


def auc_by_hand(score, positive):
    """Returns the share of pairs of a positive and a negative in the right order; a tie counts half."""
    pairs = [(p, n) for p in score[positive] for n in score[~positive]]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs) if pairs else np.nan


def precision_by_hand(score, positive):
    """Returns the mean over the positives of the precision at the positive's own score as the threshold."""
    if positive.all() or not positive.any():
        return np.nan
    return np.mean([positive[score >= threshold].mean() for threshold in score[positive]])


def classes_by_hand(actual, predicted):
    """Returns (accuracy, macro F1) from counts of true and false positives, class by class."""
    actual, predicted = list(actual), list(predicted)
    scores = []
    for c in set(actual) | set(predicted):
        true = sum(a == c and p == c for a, p in zip(actual, predicted, strict=True))
        precision = true / predicted.count(c) if c in predicted else 0
        recall = true / actual.count(c) if c in actual else 0
        scores.append(2 * precision * recall / (precision + recall) if precision + recall else 0)
    right = sum(a == p for a, p in zip(actual, predicted, strict=True))
    return right / len(actual), sum(scores) / len(scores)


def named_classes_by_hand(target, outputs, label):
    """Returns [(actual, predicted)] of each label, two sets of class numbers."""
    found = []
    for logits, y in zip(outputs, label, strict=True):
        if "multilabel" in target.kind:
            found.append(({c for c in range(target.size) if y[c]}, {c for c in range(target.size) if logits[c] > 0}))
        else:
            found.append(({int(np.argmax(y)) if target.kind == "distribution" else int(y)}, {int(np.argmax(logits))}))
    return found


def table_by_hand(target, outputs, label):
    """Returns {"class", "precision", "recall", "f1", "support"} of each class, by counting one label at a time."""
    table = []
    for c, name in enumerate(target.names):
        true, false_positive, false_negative = 0, 0, 0
        for actual, predicted in named_classes_by_hand(target, outputs, label):
            true += c in actual and c in predicted
            false_positive += c not in actual and c in predicted
            false_negative += c in actual and c not in predicted
        precision = true / (true + false_positive) if true + false_positive else None
        recall = true / (true + false_negative) if true + false_negative else None
        f1 = None
        if precision is not None or recall is not None:
            f1 = 2 * precision * recall / (precision + recall) if true else 0.0
        row = {"class": name, "precision": precision, "recall": recall, "f1": f1, "support": true + false_negative}
        table.append(row)
    return table


def rounded(rows):
    """Returns the rows of a table with numbers of 9 digits after the point, which may be compared by ==."""
    return [{key: round(value, 9) if type(value) is float else value for key, value in row.items()} for row in rows]


def calibration_by_hand(claims):
    """Returns the mean over 15 bins of |mean confidence - share correct|, for pairs (confidence, correct)."""
    gaps = []
    for number in range(15):
        inside = [(p, correct) for p, correct in claims if number / 15 < p <= (number + 1) / 15]
        if inside:
            gaps.append(
                abs(np.mean([p for p, _ in inside]) - np.mean([correct for _, correct in inside])) * len(inside)
            )
    return sum(gaps) / len(claims)


def one_class_by_hand(target, outputs, label):
    entropies, actual, claims, places = [], [], [], []
    for logits, y in zip(outputs, label, strict=True):
        p = np.exp(logits - max(logits)) / np.exp(logits - max(logits)).sum()
        wanted = y if target.kind == "distribution" else np.eye(target.size)[y]
        entropies.append(-sum(w * np.log(q) for w, q in zip(wanted, p, strict=True) if w))
        actual.append(int(np.argmax(wanted)))
        places.append(sorted(range(target.size), key=lambda c, logits=logits: -logits[c]).index(actual[-1]))
        claims.append((max(p), places[-1] == 0))
    accuracy, macro_f1 = classes_by_hand(actual, [int(np.argmax(logits)) for logits in outputs])
    found = {
        "accuracy": accuracy,
        "macro_f1": macro_f1,
        "cross_entropy": np.mean(entropies),
        "micro_f1": accuracy,
        "expected_calibration_error": calibration_by_hand(claims),
    }
    found |= {"nll": np.mean(entropies)} if target.kind == "step_class" else {}
    return found | {f"top_{k}_accuracy": np.mean([p < k for p in places]) for k in (3, 5) if target.size > k}


def several_classes_by_hand(target, outputs, label):
    decisions, entropies, exact, f1s, areas = [], [], [], [], []
    for logits, y in zip(outputs, label, strict=True):
        row = [(1 / (1 + np.exp(-logit)), bool(true)) for logit, true in zip(logits, y, strict=True)]
        entropies.append(-sum(np.log(p if true else 1 - p) for p, true in row))
        exact.append(all((p > 0.5) == true for p, true in row))
        decisions += row
    for c in range(target.size):
        mine = decisions[c :: target.size]
        f1s.append(
            [sum(true and p > 0.5 for p, true in mine), sum(true for _, true in mine), sum(p > 0.5 for p, _ in mine)]
        )
        if 0 < f1s[-1][1] < len(mine):
            scores = np.array([logits[c] for logits in outputs], np.float32)
            positives = np.array([true for _, true in mine])
            areas.append((auc_by_hand(scores, positives), precision_by_hand(scores, positives)))
    true, positive, predicted = np.sum(f1s, axis=0)
    occur = [2 * t / (a + p) for t, a, p in f1s if a + p]
    return {
        "nll": np.mean(entropies),
        "micro_f1": 2 * true / (positive + predicted) if occur else None,
        "auc": np.mean([auc for auc, _ in areas]) if areas else None,
        "average_precision": np.mean([precision for _, precision in areas]) if areas else None,
        "macro_f1": np.mean(occur) if occur else None,
        "accuracy": np.mean([(p > 0.5) == true for p, true in decisions]),
        "exact_match": np.mean(exact),
        "expected_calibration_error": calibration_by_hand(decisions),
    }


def numbers_by_hand(target, outputs, label):
    errors = [float(a) - float(b) for a, b in zip(np.ravel(outputs), np.ravel(label), strict=True)]
    return {"mae": np.mean(np.abs(errors)), "rmse": np.sqrt(np.mean(np.square(errors)))}


def metrics_by_hand(target, outputs, label):
    """Returns every metric of a list of labels and their outputs, computed in the most literal way."""
    outputs, label = (values if values.dtype == np.int64 else values.astype(np.float64) for values in (outputs, label))
    if target.kind in ("regression", "step_regression"):
        return numbers_by_hand(target, outputs, label)
    if target.kind in ("multilabel", "step_multilabel"):
        return several_classes_by_hand(target, outputs, label)
    return one_class_by_hand(target, outputs, label)
