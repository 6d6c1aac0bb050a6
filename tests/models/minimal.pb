
;
xPlaceholder*
dtype0*
shape:ÿÿÿÿÿÿÿÿÿ

yAddV2xx*
T0"Û