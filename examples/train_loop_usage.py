"""Seven ways to use TrainingLoop; each runs by its name in under a minute.

python examples/train_loop_usage.py basic
python examples/train_loop_usage.py --list
"""

from __future__ import annotations

import argparse
import logging
import threading
import time

import gymnasium as gym
from stable_baselines3 import DQN, PPO

from rltrack import (
    EarlyStoppingHook,
    LoggingHook,
    ProgressReporter,
    TrainingLoop,
    TrainingStatistics,
    TrainingStrategy,
    create_training_loop,
)


def new_agent() -> PPO:
    return PPO("MlpPolicy", "CartPole-v1", n_steps=256, batch_size=64, learning_rate=1e-3, seed=0)


def basic() -> TrainingStatistics:
    """Train for a number of env steps, with an evaluation on the way and a line in the log."""
    loop = TrainingLoop(agent=new_agent(), env=gym.make("CartPole-v1"), total_timesteps=4_000, eval_freq=2_000)
    loop.add_hook(LoggingHook(log_interval=1_000))
    return loop.run()


def episodic() -> TrainingStatistics:
    """Train for a number of episodes; an off-policy agent updates once per episode."""
    agent = DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=2.3e-3,
        learning_starts=200,
        target_update_interval=50,
        train_freq=1,
        exploration_fraction=0.5,
        seed=0,
    )
    loop = TrainingLoop(agent, "CartPole-v1", strategy=TrainingStrategy.EPISODIC, total_episodes=60, eval_freq=20)
    return loop.run()


def early_stopping() -> TrainingStatistics:
    """Stop when three evaluations in a row bring no improvement."""
    loop = TrainingLoop(new_agent(), "CartPole-v1", total_timesteps=20_000, eval_freq=1_000)
    loop.add_hook(EarlyStoppingHook(patience=3, min_improvement=0.01))
    return loop.run()


def adaptive() -> TrainingStatistics:
    """Let evaluations set their own interval and the learning rate, and stop when converged."""
    loop = TrainingLoop(
        agent=new_agent(),
        env="CartPole-v1",
        strategy=TrainingStrategy.ADAPTIVE,
        total_timesteps=10_000,
        eval_freq=1_000,
        convergence_threshold=475.0,
    )
    statistics = loop.run()
    for decision in loop.metrics.decisions:
        print(f"{decision['step']:>7,} env steps: {decision['decision']}: {decision['reason']}")
    return statistics


def from_configuration() -> TrainingStatistics:
    """Build the loop from a flat dictionary."""
    config = {
        "strategy": "mixed",
        "total_timesteps": 4_000,
        "total_episodes": 400,
        "eval_freq": 2_000,
        "checkpoint_freq": 2_000,
        "memory_limit_mb": 4_000.0,
        "enable_early_stopping": True,
        "tensorboard_log_dir": "logs/tb",
    }
    return create_training_loop(new_agent(), "CartPole-v1", config).run()


def pause_resume() -> TrainingStatistics:
    """Pause, go on and stop from another thread."""
    loop = TrainingLoop(new_agent(), "CartPole-v1", total_timesteps=10_000_000)

    def from_elsewhere() -> None:
        time.sleep(2)
        loop.pause()
        time.sleep(1)
        print(f"paused at {loop.progress.env_steps:,} env steps")
        loop.resume()
        time.sleep(2)
        loop.stop("enough for an example")

    threading.Thread(target=from_elsewhere).start()
    return loop.run()


def resource_monitoring() -> TrainingStatistics:
    """Watch memory, CPU and GPU while training; stop with a checkpoint beyond a limit."""
    loop = TrainingLoop(
        memory_limit_mb=4_000.0,
        convergence_threshold=475.0,
        total_timesteps=6_000,
        reporter=ProgressReporter(console=True),
    )
    statistics = loop.run(new_agent(), "CartPole-v1")
    if loop.progress.resources is not None:
        for key, value in loop.progress.resources.to_metrics().items():
            print(f"{key:<45} {value:10.1f}")
    return statistics


EXAMPLES = {
    function.__name__.replace("_", "-"): function
    for function in (basic, episodic, early_stopping, adaptive, from_configuration, pause_resume, resource_monitoring)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("example", nargs="?", choices=list(EXAMPLES), default="basic")
    parser.add_argument("--list", action="store_true", help="say what each one shows")
    arguments = parser.parse_args()
    if arguments.list:
        for name, function in EXAMPLES.items():
            print(f"{name:<22}{(function.__doc__ or '').splitlines()[0]}")
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    statistics = EXAMPLES[arguments.example]()
    evaluation = statistics.final_evaluation
    print(f"{statistics.state.value}: {statistics.reason}")
    print(
        f"{statistics.env_steps:,} env steps, {statistics.episodes:,} episodes, {statistics.steps_per_second:,.0f} steps/s"
    )
    if evaluation is not None:
        print(
            f"mean return {evaluation.mean:.1f}, 95 % interval {evaluation.interval.low:.1f} to {evaluation.interval.high:.1f}"
        )


if __name__ == "__main__":
    main()
