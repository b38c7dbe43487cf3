"""W&B as a service that answers or does not: whose project it is, and what to say where there is no answer."""

from harness.core.errors import UserError

#: Limits of requests to W&B. Together they stay below wandb's own timeout (19 s), which would hide why they failed.
TIMEOUT_S, RETRIES, WAIT_S = 8.0, 1, 1.0


def prepare(entity: str | None, project: str) -> str:
    """The entity that owns a project, which is created if need be. Raises UserError without a key or an answer."""
    import wandb

    retries = {"x_graphql_retry_max": RETRIES, "x_graphql_retry_wait_max_seconds": WAIT_S}
    # Silent: otherwise it asks for a key where there is a terminal.
    wandb.setup(wandb.Settings(silent=True, x_graphql_timeout_seconds=TIMEOUT_S, **retries))
    try:
        api = wandb.Api()
        owner = entity or api.settings["entity"] or api.default_entity  # as a run chooses it
        if owner and all(found.name != project for found in api.projects(owner)):
            api.create_project(project, owner)  # a sweep that has no run yet
    except wandb.errors.UsageError:
        text = "no W&B key was found: `wandb login` stores one, or set WANDB_API_KEY; --print needs none"
        raise UserError(text) from None
    except Exception as error:  # a service may fail in any way
        raise unanswered(error) from None
    if not owner:
        raise UserError("W&B names no default entity for this key; say where the view goes: --entity")
    return owner


def unanswered(error: Exception) -> UserError:
    """What to say of any failure."""
    return UserError(f"W&B did not take the view ({' '.join(str(error).split())}); --print shows what would be sent")
