"""A training run, read top to bottom."""

import contextlib
import pathlib
import sys

import jax

from psp_jax import (
  checkpoint,
  cityscapes_scores,
  console,
  evaluate,
  events,
  history,
  kept_programs,
  limits,
  losses,
  memory,
  non_finite,
  pretrained,
  profiling,
  report,
  runs,
  saved_config,
  sharding,
  stopping,
  submission,
  train_step,
  visualize,
  watchdog,
)
from psp_jax import workdir as folder
from psp_jax.data import augment, datasets, input_pipeline
from psp_jax.errors import ConfigError, Stopped, check_choice
from psp_jax.models import create_model


def train(config, workdir: pathlib.Path,
          start: console.Start | None = None,
          stop: stopping.Stop | None = None, allowed_changes=()) -> None:
  """Trains to `config.num_train_steps`, then evaluates.

  Started again on the same workdir it goes on from the last checkpoint, and
  ends with the bits of a run that nothing disturbed.

  Args:
    config: what to do.
    workdir: where, one run at a time.
    start: what the process did before; without, the clock starts here.
    stop: what tells it to stop; without, it listens for signals itself.
    allowed_changes: config fields that may differ from what the run had, as
      `saved_config.check_unchanged` takes them.

  Raises:
    UserError: what is wrong and what to do; no earlier checkpoint is touched.
    Stopped: it was told to, and has saved.
  """
  if stop is None:
    with stopping.Stop().listen() as stop:
      train(config, workdir, start, stop, allowed_changes)
    return
  start = start or console.Start()
  stop.nothing_to_save()
  with folder.locked(workdir), contextlib.closing(
      watchdog.Watchdog(config.stall_seconds)) as dog:
    _train(config, workdir, start, stop, dog, allowed_changes)


def _train(config, workdir, start, stop, dog, allowed_changes):
  # ---- What can be refused before any work is done.
  dog.hears("starting")
  limits.check(config)
  mesh = sharding.create_mesh(config.mesh.data, config.mesh.space)
  sharding.settle_batch(config, mesh)
  losses.check_normalizer(config)
  pretrained.check(config)
  augment.check(config)
  input_pipeline.check(config)
  part, parts = sharding.data_share(mesh)
  input_pipeline.check_shared_memory(config, parts)
  check_choice("non_finite", config.non_finite, ("stop", "skip"))
  profiled = profiling.parse(config.profile, config.num_train_steps)
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

  # ---- State: the last checkpoint, else pretrained or random weights.
  checkpoints = checkpoint.Checkpoints(
      workdir, config.checkpoint.keep, config.checkpoint.keep_every_steps,
      lambda: past.best_step())
  resumed = checkpoints.steps()
  if resumed:  # A converted network is a checkpoint of step 0.
    if resumed[-1]:
      saved_config.check_unchanged(config, workdir, allowed_changes)
    dog.hears("reading the last checkpoint")
    state = checkpoints.restore(train_step.state_shapes(
        model, config, sharding.replicated(mesh)), repair=True)
  else:
    dog.hears("making the first weights")
    variables = train_step.initialize(model, config)
    if config.model.pretrained:
      variables = pretrained.load(config.model.pretrained, variables, config)
    state = train_step.create_train_state(model, config, variables)
    state = jax.device_put(state, sharding.replicated(mesh))
  first_step = int(state.step)
  past: history.History = history.History(workdir, first_step)
  runs.save_config(config, workdir)
  runs.save_classes(runs.Classes(
      train_split.taxonomy, runs.usual_size(train_split)), workdir)
  start.done("weights")

  console.describe_run(
      config, model, sum(p.size for p in jax.tree.leaves(state.params)), mesh,
      f"{config.data.name}, {len(train_split):,} to train on, "
      f"{len(eval_split):,} to score"
      + (f", from {train_split.source}" if train_split.source else ""),
      workdir)
  if resumed:
    console.log(f"resumed    from the checkpoint of step {first_step:,}")
  if first_step < config.num_train_steps:
    console.log("compiling  the first step takes a while, the first time")
  if profiled and profiled[1] <= first_step:
    console.log(f"profile    none: steps {config.profile} are done already")

  # ---- The step, compiled once.
  step_fn = kept_programs.kept(
      "train_step", train_step.compiled_step(model, config, mesh), config)

  # ---- The steps, then the score.
  writer = events.EventWriter(workdir)
  guard = non_finite.Guard(config, workdir, train_split, state.params)
  reader = input_pipeline.train_batches(
      train_split, config, first_step, part, parts)
  batches = sharding.prefetch_to_mesh(reader, mesh)
  progress = console.Progress(config.num_train_steps, config.global_batch_size)
  profile = profiling.Profile(profiled, workdir)

  def alive(doing):
    dog.hears(doing)
    stop.check()

  def validate(state):
    confusion, kept = evaluator.run(
        state, validation_split, config.validation.num_images,
        config.validation.contact_sheet_images, alive=alive, what="validation")
    scores = evaluate.score(confusion, config)
    step, taxonomy = int(state.step), validation_split.taxonomy
    past.add(step, scores)
    console.log(f"validation {console.summary(scores)}")
    writer.write_scores(step, "validation", scores, taxonomy.class_names)
    if kept:
      writer.write_image(step, "validation/photos", visualize.contact_sheet(
          kept, taxonomy, visualize.MAX_WIDTH))

  with writer:  # What it has is written, come what may.
    try:
      with (contextlib.closing(reader),  # Or its processes live on.
            contextlib.closing(progress), contextlib.closing(profile)):
        state = run_steps(config, state, step_fn, batches, guard, checkpoints,
                          validate, past, writer, start, stop, dog, progress,
                          profile)
    finally:
      # Waits for the save under way, whatever happened; but of several
      # processes others may be gone, and what they save together never ends.
      failed = sys.exc_info()[0]
      if jax.process_count() == 1 or failed in (None, Stopped):
        dog.hears("waiting for a checkpoint to be written")
        checkpoints.close()
    scores = finish(evaluator, state, eval_split, config, workdir, writer,
                    alive)
  console.describe_end(workdir, start.seconds(), scores, past.best())


def run_steps(config, state, step_fn, batches, guard, checkpoints, validate,
              past, writer, start, stop, dog, progress, profile):
  """From `state.step` to the last: train, report, save, validate.

  Step s is checked while step s + 1 runs on the device.

  Raises:
    Stopped: it was told to; the last step that is done is saved.
  """
  first_step = int(state.step)
  if (0 < first_step < config.num_train_steps and not past.has(first_step)
      and _due(first_step, config.validation.every_steps)):
    validate(state)  # What was disturbed, after the save.
  pending = None
  for step in range(first_step + 1, config.num_train_steps + 1):
    first, last = step == first_step + 1, step == config.num_train_steps
    with profile.step(step):
      dog.hears(f"waiting for the batch of step {step}")
      with jax.profiler.TraceAnnotation("next batch"):
        batch = next(batches)
      dog.hears("compiling the step" if first else f"waiting for step {step}")
      state, metrics = step_fn(state, batch)
    if first:
      start.done("batch and compile")
    if pending is not None:
      progress.show(pending[0], guard.check(*pending))
    pending = step, metrics
    with progress.paused():
      profile.started(step, metrics)

    if _due(step, config.log_every_steps) or first or last:
      values = guard.check(*pending)
      progress.show(step, values)
      if first:
        start.done("step")
        console.log(start.line())
        writer.write_config(step, config)
      console.log(progress.line(step, values))
      writer.write_scalars(step, "train", values | {
          "images_per_second": progress.images_per_second(step)})
      if step == 1 or last or _due(step, config.log_every_steps):
        past.add_step(step, values)  # As if nothing had disturbed it.
    if first:
      progress.start(step)  # After the compilation.
      stop.nothing_to_save(False)

    leaving = stop.asked(step) and not last
    validating = _due(step, config.validation.every_steps) and not last
    if (_due(step, config.checkpoint.every_steps) or last or leaving
        or validating):
      guard.check(*pending)
      dog.hears(f"saving step {step}")
      with progress.paused():
        checkpoints.save(state)
        memory.give_back()
        if leaving or not config.checkpoint.asynchronous:
          checkpoints.wait()
    if leaving:
      raise Stopped(f"saved step {step:,}")

    if validating:
      with progress.paused(hidden=True):
        validate(state)
  return state


def evaluate_checkpoint(config, workdir: pathlib.Path) -> None:
  """Scores the checkpoint of `config.eval.step`, or the last.

  Raises:
    UserError: there is no such checkpoint, or it does not fit the config.
  """
  start = console.Start()
  checkpoint.Checkpoints.existing(workdir).close()
  limits.check(config)
  input_pipeline.check(config)
  settle_classes(config, datasets.taxonomy(config))
  evaluator = evaluate.Evaluator(create_model(config), config)
  split = datasets.open_split(config, config.eval.split)
  check_scorable(config, split)
  state = runs.restore(config, workdir, config.eval.step)
  with events.EventWriter(workdir) as writer:
    scores = finish(evaluator, state, split, config, workdir, writer)
  console.describe_end(workdir, start.seconds(), scores)


def finish(evaluator, state, split, config, workdir, writer,
           alive=lambda doing: None):
  """The evaluation that ends a run: console and files in workdir.

  Returns:
    The scores; None where there are no masks to score by.
  """
  step = int(state.step)
  console.log(f"evaluation of step {step:,} on {config.data.name} "
              f"{config.eval.split}, {evaluator.protocol.as_json()}")
  uses = []
  if config.eval.write_predictions:
    uses.append(lambda record, prediction: submission.write(
        workdir / "predictions", split.taxonomy, record["name"], prediction))
  instances = cityscapes_scores.Counts()
  if split.has_instances:
    uses.append(instances.add_record)

  def use(record, prediction):
    for each in uses:
      each(record, prediction)

  images = report.collector(config, split)
  confusion, kept = evaluator.run(
      state, split, config.eval.num_images, config.eval.contact_sheet_images,
      use if uses else None, alive, images and images.add)
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
    evaluate.write_confusion(workdir, confusion, split.taxonomy.class_names)
    if images:
      report.write(workdir, config, split.taxonomy, confusion, images)
    writer.write_scores(step, "eval", scores, split.taxonomy.class_names)
    console.say(console.score_table(scores, split.taxonomy.class_names))
  for kind, value in further.get("cityscapes", {}).items():
    if kind.startswith("average") and value is not None:
      console.say(f"{kind} {value:.2%} (Cityscapes' own)")
  return scores if split.labelled else None


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


def _due(step: int, every: int) -> bool:
  return every > 0 and step % every == 0
