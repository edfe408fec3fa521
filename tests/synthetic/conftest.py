import pytest

from vggfeat import synthetic


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """Render a tiny set once, and hand out its root."""
    roots = {}

    def render(name):
        if name not in roots:
            roots[name] = tmp_path_factory.mktemp(name)
            synthetic.write(name, roots[name], size="tiny")
        return roots[name]

    return render
