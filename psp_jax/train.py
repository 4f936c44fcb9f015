"""A training run, read top to bottom."""

import contextlib
import math
import pathlib

import jax

from psp_jax import (
  checkpoint,
  cityscapes_scores,
  console,
  evaluate,
  losses,
  pretrained,
  runs,
  scalars,
  sharding,
  submission,
  train_step,
)
from psp_jax.data import augment, datasets, input_pipeline
from psp_jax.errors import ConfigError, NonFiniteError
from psp_jax.models import create_model


def train(config, workdir: pathlib.Path,
          start: console.Start | None = None) -> None:
  """Trains to `config.num_train_steps`, then evaluates.

  Started again on the same workdir it goes on from the last checkpoint.
  `start` is what the process did before; without, the clock starts here.

  Raises:
    UserError: what is wrong and what to do; no earlier checkpoint is touched.
  """
  # ---- What can be refused before any work is done.
  start = start or console.Start()
  mesh = sharding.create_mesh(config.mesh.data, config.mesh.space)
  sharding.check_batch(config.global_batch_size, mesh)
  sharding.check_crop(config.data.crop_size, mesh)
  losses.check_normalizer(config)
  augment.check(config)
  input_pipeline.check(config)
  input_pipeline.check_shared_memory(config)
  settle_classes(config, datasets.taxonomy(config))
  model = create_model(config)
  evaluator = evaluate.Evaluator(model, config)

  # ---- Data.
  train_split = datasets.open_split(config, config.data.train_split)
  validation_split = datasets.open_split(config, config.validation.split)
  eval_split = datasets.open_split(config, config.eval.split)
  check_labelled("data.train_split", config.data.train_split, train_split)
  check_labelled("validation.split", config.validation.split, validation_split)
  check_scorable(config, eval_split)
  start.done("data")

  # ---- State: pretrained or random, then the last checkpoint if there is one.
  variables = train_step.initialize(model, config)
  if config.model.pretrained:
    variables = pretrained.load(config.model.pretrained, variables, config)
  state = train_step.create_train_state(model, config, variables)
  state = jax.device_put(state, sharding.replicated(mesh))
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoints = checkpoint.Checkpoints(workdir, config.checkpoint.keep)
  resumed = checkpoints.latest_step() is not None
  if resumed:  # A converted network is a checkpoint of step 0.
    state = checkpoints.restore(state)
  first_step = int(state.step)
  runs.save_config(config, workdir)
  start.done("weights")

  console.describe_run(
      config, model, sum(p.size for p in jax.tree.leaves(state.params)), mesh,
      f"{config.data.name}, {len(train_split):,} to train on, "
      f"{len(eval_split):,} to score"
      + (f", from {train_split.source}" if train_split.source else ""),
      workdir)
  if resumed:
    console.say(f"resumed    from the checkpoint of step {first_step:,}")
  if first_step < config.num_train_steps:
    console.say("compiling  the first step takes a while, the first time")

  # ---- The step, compiled once.
  step_fn = train_step.compiled_step(model, config, mesh)

  # ---- The steps, then the score.
  writer = scalars.ScalarWriter(workdir)
  reader = input_pipeline.train_batches(train_split, config, first_step)
  batches = sharding.prefetch_to_mesh(reader, mesh)

  def validate(state):
    confusion, _ = evaluator.run(
        state, validation_split, config.validation.num_images)
    return evaluate.score(confusion, config)

  with contextlib.closing(writer):  # What it has is written, come what may.
    try:
      with contextlib.closing(reader):  # Or its processes live on.
        state = run_steps(config, state, step_fn, batches, checkpoints,
                          validate, writer, start)
    finally:
      checkpoints.close()  # Waits for the save under way, whatever happened.
    finish(evaluator, state, eval_split, config, workdir, writer)


def run_steps(config, state, step_fn, batches, checkpoints, validate, writer,
              start):
  """From `state.step` to the last: train, report, save, validate.

  Step s is checked while step s + 1 runs on the device.
  """
  first_step = int(state.step)
  progress = console.Progress(
      config.num_train_steps, config.global_batch_size)
  pending = None
  for step in range(first_step + 1, config.num_train_steps + 1):
    first, last = step == first_step + 1, step == config.num_train_steps
    state, metrics = step_fn(state, next(batches))
    if first:
      start.done("batch and compile")
    if pending is not None:
      check_finite(*pending)
    pending = step, metrics

    if _due(step, config.log_every_steps) or first or last:
      values = check_finite(*pending)
      if first:
        start.done("step")
        console.say(start.line())
      console.say(progress.line(step, values))
      writer.write_scalars(step, dict(
          values, images_per_second=progress.images_per_second(step)))
    if first:
      progress.start(step)  # After the compilation.

    if _due(step, config.checkpoint.every_steps) or last:
      check_finite(*pending)
      paused_at = progress.pause()
      checkpoints.save(state)
      progress.resume(paused_at)

    if _due(step, config.validation.every_steps) and not last:
      paused_at = progress.pause()
      scores = validate(state)
      console.say(f"validation {console.summary(scores)}")
      writer.write_scalars(step, {"validation/miou": scores.miou})
      progress.resume(paused_at)
  return state


def evaluate_checkpoint(config, workdir: pathlib.Path) -> None:
  """Scores the checkpoint of `config.eval.step`, or the last.

  Raises:
    UserError: there is no such checkpoint, or it does not fit the config.
  """
  checkpoint.Checkpoints.existing(workdir).close()
  input_pipeline.check(config)
  settle_classes(config, datasets.taxonomy(config))
  evaluator = evaluate.Evaluator(create_model(config), config)
  split = datasets.open_split(config, config.eval.split)
  check_scorable(config, split)
  state = runs.restore(config, workdir, config.eval.step)
  with contextlib.closing(scalars.ScalarWriter(workdir)) as writer:
    finish(evaluator, state, split, config, workdir, writer)


def finish(evaluator, state, split, config, workdir, writer) -> None:
  """The evaluation that ends a run: console and files in workdir."""
  step = int(state.step)
  console.say(f"evaluation of step {step:,} on {config.data.name} "
              f"{config.eval.split}, {evaluator.protocol.as_json()}")
  files, uses = "eval.json, contact_sheet.png", []
  if config.eval.write_predictions:
    files += ", predictions/"
    uses.append(lambda record, prediction: submission.write(
        workdir / "predictions", split.taxonomy, record["name"], prediction))
  instances = cityscapes_scores.Counts()
  if split.has_instances:
    uses.append(instances.add_record)

  def use(record, prediction):
    for each in uses:
      each(record, prediction)

  confusion, kept = evaluator.run(
      state, split, config.eval.num_images, config.eval.contact_sheet_images,
      use if uses else None)
  scores = evaluate.score(confusion, config)
  further = {}
  if split.has_instances:
    further["cityscapes"] = cityscapes_scores.plain(cityscapes_scores.scores(
        instances.summed(evaluate.sum_over_processes)))
  count = len(input_pipeline.subset_indices(
      len(split), config.eval.num_images))
  evaluate.write_results(workdir, scores, split.taxonomy, evaluator.protocol,
                         count, step, kept, config.data.name,
                         config.eval.split, further)
  if split.labelled:
    writer.write_scalars(step, {
        "eval/miou": scores.miou, "eval/mean_accuracy": scores.mean_accuracy,
        "eval/pixel_accuracy": scores.pixel_accuracy})
    console.say(console.score_table(scores, split.taxonomy.class_names))
  for kind, value in further.get("cityscapes", {}).items():
    if kind.startswith("average") and value is not None:
      console.say(f"{kind} {value:.2%} (Cityscapes' own)")
  console.say(f"written to {workdir}: {files}")


def settle_classes(config, taxonomy) -> None:
  """Sets `config.model.num_classes` where it is 0.

  Raises:
    ConfigError: it is neither 0 nor what the dataset has.
  """
  if not config.model.num_classes:
    config.model.num_classes = taxonomy.num_classes
  if config.model.num_classes != taxonomy.num_classes:
    raise ConfigError(
        f"config.model.num_classes={config.model.num_classes}, but "
        f"{config.data.name} has {taxonomy.num_classes} classes")


def check_labelled(field: str, name: str, split) -> None:
  if not split.labelled:
    raise ConfigError(f"config.{field}={name!r}: its images have no masks; "
                      "name another split")


def check_scorable(config, split) -> None:
  if not split.labelled and not config.eval.write_predictions:
    raise ConfigError(
        f"config.eval.split={config.eval.split!r}: its images have no masks; "
        "name another split, or write the predictions for its server with "
        "config.eval.write_predictions=True")


def check_finite(step: int, metrics) -> dict[str, float]:
  """The metrics as floats; waits for the step.

  Raises:
    NonFiniteError: the loss or the gradient is NaN or infinite.
  """
  values = {name: float(value) for name, value in metrics.items()}
  for name in ("loss", "grad_norm"):
    if not math.isfinite(values[name]):
      raise NonFiniteError(
          f"{name} is {values[name]} at step {step}, learning rate "
          f"{values['learning_rate']:.3g}: stopped; the checkpoints before it "
          "are good. Lower config.optimizer.base_lr and start again")
  return values


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
