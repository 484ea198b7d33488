"""Tabular models to ONNX: scikit-learn (joblib, pickle), XGBoost, LightGBM. See _conversion.py for the files.

Classifiers give one output, probabilities (rows, classes); the label output of the converters is dropped.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _conversion as tool
import numpy as np

warnings.simplefilter("ignore")

ROWS = 64
OPSETS = {"": tool.OPSET, "ai.onnx.ml": 3}


def convert(path, job):
    if job["format"] == "sklearn":
        return _sklearn(path, trust=job["trust"])
    return {"xgboost": _xgboost, "lightgbm": _lightgbm}[job["format"]](path)


def _sklearn(path, *, trust):
    import joblib
    import skl2onnx
    from skl2onnx.common.data_types import FloatTensorType

    if not trust:
        raise tool.Refusal("a pickle runs code when it is loaded", tool.TRUST)
    estimator = joblib.load(path)
    if not hasattr(estimator, "predict") and not hasattr(estimator, "transform"):
        raise tool.Refusal(f"it holds a {type(estimator).__name__}, not a scikit-learn model")
    width = getattr(estimator, "n_features_in_", None)
    if width is None:
        raise tool.Refusal("the scikit-learn model is not fitted", "fit it, then save it")
    _strangers()
    classifier = hasattr(estimator, "classes_") and hasattr(estimator, "predict")
    model = skl2onnx.to_onnx(
        estimator,
        initial_types=[("input", FloatTensorType([None, width]))],
        options={id(estimator): {"zipmap": False}} if classifier else None,
        target_opset=OPSETS,
    )

    def answer(x):
        if hasattr(estimator, "predict_proba"):
            return estimator.predict_proba(x)
        if classifier and hasattr(estimator, "decision_function"):
            return estimator.decision_function(x)
        return estimator.predict(x) if hasattr(estimator, "predict") else estimator.transform(x)

    name = (
        "probabilities" if hasattr(estimator, "predict_proba") else "scores" if classifier else "prediction"
    )
    table = _table(width, {})
    return _finished(model, name, classifier, table, answer)


def _strangers():
    """XGBoost and LightGBM models inside scikit-learn pipelines."""
    import lightgbm
    import skl2onnx
    import xgboost
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost
    from skl2onnx.common import shape_calculator as shapes

    classes, numbers = (
        shapes.calculate_linear_classifier_output_shapes,
        shapes.calculate_linear_regressor_output_shapes,
    )
    options = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
    add = skl2onnx.update_registered_converter
    add(xgboost.XGBClassifier, "XGBoostXGBClassifier", classes, convert_xgboost, options=options)
    add(xgboost.XGBRegressor, "XGBoostXGBRegressor", numbers, convert_xgboost)
    add(lightgbm.LGBMClassifier, "LightGbmLGBMClassifier", classes, convert_lightgbm, options=options)
    add(lightgbm.LGBMRegressor, "LightGbmLGBMRegressor", numbers, convert_lightgbm)


def _xgboost(path):
    import onnxmltools
    import xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster = xgboost.Booster(model_file=str(path))
    width = booster.num_features()
    booster.feature_names = booster.feature_types = None  # the converter wants its own
    objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
    if objective == "multi:softmax":  # answers with the class; its scores are softprob's
        objective = "multi:softprob"
        booster.set_param({"objective": objective})
    model = onnxmltools.convert_xgboost(booster, initial_types=[("input", FloatTensorType([None, width]))])
    classifier = objective.startswith(("binary:", "multi:"))

    def answer(x):
        return booster.predict(xgboost.DMatrix(x))

    return _finished(
        model,
        "probabilities" if classifier else "prediction",
        classifier,
        _table(width, _splits([json.loads(tree) for tree in booster.get_dump(dump_format="json")])),
        answer,
    )


def _lightgbm(path):
    import lightgbm
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    booster = lightgbm.Booster(model_file=str(path))
    width = booster.num_feature()
    described = booster.dump_model()
    types = [("input", FloatTensorType([None, width]))]
    model = onnxmltools.convert_lightgbm(booster, initial_types=types, zipmap=False)
    classifier = described["objective"].startswith(("binary", "multiclass"))
    table = _table(width, _splits(described["tree_info"]))
    name = "probabilities" if classifier else "prediction"
    return _finished(model, name, classifier, table, booster.predict)


def _splits(trees):
    """Feature number to the thresholds that the trees ask about."""
    found = {}
    stack = list(trees)
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack += item
        if not isinstance(item, dict):
            continue
        feature = item.get("split_feature", item.get("split"))
        threshold = item.get("threshold", item.get("split_condition"))
        if feature is not None and isinstance(threshold, int | float):
            number = int(str(feature).removeprefix("f"))
            found.setdefault(number, []).append(float(threshold))
        stack += item.values()
    return found


def _table(width, splits):
    """Rows whose values lie about the thresholds, so that both sides of every split are visited."""
    generator = np.random.default_rng(20260101)
    x = generator.standard_normal((ROWS, width))
    for number, thresholds in splits.items():
        spread = max(float(np.std(thresholds)), 0.1 * abs(thresholds[0]), 1e-3)
        x[:, number] = generator.choice(thresholds, ROWS) + spread * x[:, number]
    return x.astype(np.float32)


def _finished(model, name, classifier, x, answer):
    """The scores as the only output, in the shape that ONNX gives them; probes of 1 and of many rows."""
    from onnx import defs, helper

    keep = model.graph.output[1 if classifier else 0]
    while model.graph.output:
        model.graph.output.pop()
    model.graph.output.append(keep)
    tool.renamed(model, ["input"], [name])
    # The converters write the least opset that would do, or none; quantizers need a later one. What these
    # graphs use of the default domain did not change its meaning, and the answers are compared afterwards.
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if versions.get("", 0) < tool.OPSET:
        versions[""] = tool.OPSET
        del model.opset_import[:]
        model.opset_import.extend(
            helper.make_opsetid(domain, version) for domain, version in versions.items()
        )
        model.ir_version = max(model.ir_version, 8)
    strange = [node for node in model.graph.node if not defs.has(node.op_type, node.domain)]
    if strange:
        raise tool.Refusal(f"node {strange[0].name!r}: operator {strange[0].op_type} is not in ONNX")
    probes = []
    for rows in (x[:1], x):
        scores = np.asarray(answer(rows), np.float32)
        if scores.ndim == 1:  # binary: the second class's; regression: a column
            scores = np.stack([1 - scores, scores], 1) if name == "probabilities" else scores[:, None]
        probes.append(([rows], [scores]))
    return model, probes, True


if __name__ == "__main__":
    tool.main(convert)
