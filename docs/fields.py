"""A griffe extension: an Equinox module shows the signature that its fields define."""

import griffe


class Fields(griffe.Extension):
    """Gives a concrete class with fields and no `__init__` the one that Equinox would make."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs):
        fields = [
            member
            for member in cls.members.values()
            if isinstance(member, griffe.Attribute)
            and member.annotation is not None
            and "property" not in member.labels
        ]
        if not fields or "__init__" in cls.members or cls.name.startswith("Abstract"):
            return
        positional = griffe.ParameterKind.positional_or_keyword
        parameters = griffe.Parameters(
            griffe.Parameter("self", kind=positional),
            *(
                griffe.Parameter(
                    field.name, annotation=field.annotation, kind=positional, default=default(field)
                )
                for field in fields
            ),
        )
        init = griffe.Function("__init__", parameters=parameters, parent=cls)
        cls.set_member("__init__", init)


def default(field: griffe.Attribute):
    """The default of a field: what follows the equals sign, or what `eqx.field` calls default."""
    if not isinstance(field.value, griffe.ExprCall):
        return field.value
    if not str(field.value.function).endswith("field"):
        return field.value
    named = {a.name: a.value for a in field.value.arguments if isinstance(a, griffe.ExprKeyword)}
    return named.get("default")
