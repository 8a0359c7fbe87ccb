"""Graphs as the page saves them, and the prompts that it would queue for them."""

from safetensors.torch import load_file

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
FRONTEND_ONLY = {"MarkdownNote"}
MUTED, BYPASSED = 2, 4
"""Modes of nodes that the page does not queue."""


def schema(node):
    """(name, type, options) of each input, in the order of the node's widgets and slots."""
    for part in ("required", "optional"):
        for name, spec in node["input"].get(part, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            kind = "COMBO" if isinstance(spec[0], list) else spec[0]
            yield name, kind, options | ({"options": spec[0]} if isinstance(spec[0], list) else {})


def is_widget(kind, options):
    """Whether the page shows an input as a widget; a text with forceInput is only a slot."""
    return kind in WIDGETS and not options.get("forceInput")


def widgets(node, saved):
    """Each widget of a saved node with the value that the host will read for it."""
    values = iter(saved["widgets_values"])
    for name, kind, options in schema(node):
        if is_widget(kind, options):
            yield name, kind, options, next(values)
            if options.get("control_after_generate"):
                assert next(values) in ("fixed", "increment", "decrement", "randomize")
            if options.get("image_upload"):
                assert next(values) == "image"
    assert next(values, None) is None, f"{saved['type']} has widgets too many"


def real_nodes(graph):
    """The nodes of a graph and of its subgraphs that the host knows."""
    own = FRONTEND_ONLY | {part["id"] for part in list_subgraphs(graph)}
    return [node for node in list_nodes(graph) if node["type"] not in own]


def as_prompt(info, graph):
    """What the page would queue for this graph."""
    graph = flatten(graph)
    queued = [node for node in real_nodes(graph) if not is_left_out(node)]
    ids = {str(node["id"]) for node in queued}
    source = {link[0]: [str(link[1]), link[2]] for link in graph["links"] if str(link[1]) in ids}
    prompt = {}
    for saved in queued:
        inputs = {name: value for name, _, _, value in widgets(info[saved["type"]], saved)}
        inputs |= {s["name"]: source[s["link"]] for s in saved["inputs"] if s["link"] in source}
        prompt[str(saved["id"])] = {"class_type": saved["type"], "inputs": inputs}
    return prompt


def is_left_out(node):
    """Whether the page queues neither the node nor what comes from it."""
    mode = node.get("mode")
    # What goes into a bypassed node would go on behind it; no workflow here has such a one.
    goes_on = any(slot.get("link") for slot in node["inputs"]) and any(
        slot.get("links") for slot in node.get("outputs", ())
    )
    assert mode != BYPASSED or not goes_on, node["type"]
    return mode in (MUTED, BYPASSED)


def list_subgraphs(graph):
    return graph.get("definitions", {}).get("subgraphs", [])


def list_nodes(graph):
    """All nodes of a graph and of its subgraphs."""
    return [node for part in (graph, *list_subgraphs(graph)) for node in part["nodes"]]


_INPUTS, _OUTPUTS = -10, -20
"""Ids that stand for a subgraph's own inputs and outputs in its links."""


def flatten(graph):
    """The graph with the nodes of each subgraph in its place, as the page queues them; a value that the
    subgraph takes from a widget is the one inside.
    """
    parts = {part["id"]: part for part in list_subgraphs(graph)}
    sources = {link[0]: (link[1], link[2]) for link in graph["links"]}
    nodes, results = [node for node in graph["nodes"] if node["type"] not in parts], {}
    for instance in (node for node in graph["nodes"] if node["type"] in parts):
        part, prefix = parts[instance["type"]], f"{instance['id']}:"
        given = {slot["name"]: sources.get(slot["link"]) for slot in instance["inputs"]}
        for link in part["links"]:
            source = (f"{prefix}{link['origin_id']}", link["origin_slot"])
            if link["origin_id"] == _INPUTS:
                source = given.get(part["inputs"][link["origin_slot"]]["name"])
            if link["target_id"] == _OUTPUTS:
                results[instance["id"], link["target_slot"]] = source
            if source is not None:
                sources[f"{prefix}{link['id']}"] = source
        for node in part["nodes"]:
            slots = [slot | {"link": _find_link(slot, prefix, sources)} for slot in node["inputs"]]
            nodes.append(node | {"id": f"{prefix}{node['id']}", "inputs": slots})
    links = [(link, *results.get(source, source)) for link, source in sources.items()]
    return {"nodes": nodes, "links": links}


def _find_link(slot, prefix, sources):
    link = f"{prefix}{slot.get('link')}"
    return link if link in sources else None


def find_node(prompt, kind, number=0):
    return [name for name, node in prompt.items() if node["class_type"] == kind][number]


def redirect(prompt, source, target):
    """Connect what was connected to one output to another one."""
    for node in prompt.values():
        node["inputs"] = {key: target if value == source else value for key, value in node["inputs"].items()}


def use_miniature(prompt):
    """Put the miniature's encoders in place of the large ones, and make few pixels."""
    prompt["mini"] = {"class_type": "SMRALoadMiniature", "inputs": {}}
    for kind, output in (("CLIPLoader", 1), ("VAELoader", 2)):
        node = find_node(prompt, kind)
        redirect(prompt, [node, 0], ["mini", output])
        del prompt[node]
    for node in prompt.values():
        if {"width", "height", "length"} <= node["inputs"].keys():
            node["inputs"] |= {"width": 64, "height": 64, "length": 5}


def run_for_latents(server, prompt, name):
    """(latents of the second sampler, entry of the history) of a prompt."""
    sampler = find_node(prompt, "KSamplerAdvanced", 1)
    inputs = {"samples": [sampler, 0], "filename_prefix": f"pair/{name}"}
    prompt["latents"] = {"class_type": "SaveLatent", "inputs": inputs}
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", entry["status"]
    (file,) = (server.base / "output" / "pair").glob(f"{name}_*.latent")
    return load_file(file)["latent_tensor"], entry
