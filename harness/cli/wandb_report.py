"""The results of a sweep as a report on W&B: the tables of its finals, one report per sweep."""

import json
from pathlib import Path
from typing import Any


def results_report(folder: Path, entity: str, project: str) -> Any:
    """The report of a sweep's finals so far: ranking, scores at each point, comparisons, and what is missing.

    Raises UserError where there is no final yet.
    """
    import wandb_workspaces.reports.v2 as wr

    folder = folder.absolute()
    return wr.Report(
        entity=entity,
        project=project,
        title=f"oscillation-harness: {folder.name}, results",
        description=f"Tables of the finals, as python analysis/make_figures.py --sweep {folder.name} makes them.",
        blocks=[wr.MarkdownBlock(text=text) for text in _tables(folder)],
        width="fluid",
    )


def _tables(folder: Path) -> list[str]:
    """In Markdown, the short answer first."""
    from analysis import comparisons, ranking, render, tables
    from analysis.disk_source import load_results
    from analysis.grouping import make_groups

    sweep = load_results(folder.parent, folder.name)
    groups = make_groups(sweep)
    rankings = [one for group in groups if (one := ranking.make_ranking(group))]
    compared = [found for group in groups if (found := comparisons.of_group(group))]
    gaps = render.gaps(sweep)
    return [
        *([ranking.to_markdown(rankings)] if rankings else []),
        *(tables.to_markdown(tables.make_table(group)) for group in groups),
        *map(comparisons.to_markdown, compared),
        *(["\n".join(["```", *gaps, "```"])] if gaps else []),
    ]


def payload(report: Any) -> dict[str, Any]:
    """What saving sends, except for ids."""
    model = report._to_model()  # there is no public way
    spec = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    owner = {"entityName": model.project.entity_name, "projectName": model.project.name}
    return {**owner, "displayName": model.display_name, "description": model.description, "spec": spec}


def save(report: Any) -> str:
    """Save a report in place of the one of its title, if there is one; returns its address."""
    import wandb

    there = wandb.Api().reports(f"{report.entity}/{report.project}")
    report.id = next((each.id for each in there if each.display_name == report.title), "")
    saved: str = report.save().url
    return saved
